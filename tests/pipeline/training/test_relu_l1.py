"""The paper's objective, against the reference's own numbers, autograd, closed forms and plain oracles."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.optimize import minimize
from torch import Tensor

from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.training.adam import Adam
from patchsae.pipeline.training.initialisation import decoder_bias, geometric_median, reference_weights
from patchsae.pipeline.training.objectives.relu_l1 import ReluL1, ReluL1Config

REFERENCE = Path(__file__).parents[2] / "data" / "reference"
DENSE, SPARSE = 0.0, 1.0
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def _config(**settings: Any) -> ReluL1Config:
    return ReluL1Config(**{"dataset": "d", "backbone": "b", **settings})


def _named(objective: ReluL1, grad: bool = False) -> dict[str, Tensor]:
    """Parameters or gradients under the names and shapes of the saved file."""
    found = {k: v.grad if grad else v for k, v in objective.parameters.items()}
    return {"W_enc": found.pop("encoder").T, **found}


@pytest.mark.parametrize("max_density", [DENSE, SPARSE])
@pytest.mark.parametrize("name", ["relu_l1_training", "relu_l1_training_cls"])
def test_training_equals_the_reference(name: str, max_density: float) -> None:
    with np.load(REFERENCE / f"{name}.npz") as file:
        reference = {key: file[key] for key in file.files}
    hyper = json.loads(str(reference["hyper"]))
    config = _config(
        l1_coefficient=hyper["l1_coefficient"],
        mse_cls_coefficient=hyper["mse_cls_coefficient"],
        dead_feature_window=hyper["dead_feature_window"],
    )
    start = Sae(*(torch.from_numpy(reference[f"init_{name}"]) for name in NAMES))
    objective = ReluL1(config, start, max_density)
    assert (hyper["betas"], hyper["eps"]) == ([0.9, 0.999], 1e-8)
    optimiser = Adam(objective.parameters)
    n_steps, n_images, tokens_per_image, d = reference["x"].shape
    token = torch.arange(tokens_per_image).repeat(n_images)
    log = []
    for step, x in enumerate(torch.from_numpy(reference["x"]).view(n_steps, -1, d)):
        n_dead = objective.n_dead()
        found = objective.gradients(x, token)
        log.append([found.reconstruction, found.penalty, found.auxiliary, found.loss, found.l0, n_dead])
        if step == 0:
            np.testing.assert_allclose(found.x_hat, reference["first_x_hat"].reshape(-1, d), atol=2e-6)
            for key, gradient in _named(objective, grad=True).items():
                expected = reference[f"first_{key}_grad"]
                np.testing.assert_allclose(gradient, expected, atol=1e-6 * np.abs(expected).max())
        optimiser.step(hyper["lr"] * min(1, (step + 1) / hyper["warmup_steps"]), step + 1)
    np.testing.assert_allclose(log, reference["log"], rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(objective.autoencoder.steps_since_fired, reference["steps_since_fired"])
    for key, parameter in _named(objective).items():
        expected = reference[f"final_{key}"]
        assert np.linalg.norm(parameter.numpy() - expected) < 1e-4 * np.linalg.norm(expected), key
    assert reference["log"][:, 5].max() > 0  # ghosts took part


def _problem(seed: int = 0, n: int = 60, d: int = 12, n_latents: int = 70) -> tuple[Sae, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    W_enc, W_dec = reference_weights(d, n_latents, generator)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    sae = Sae(8 * W_enc, draw(n_latents) - 0.5, W_dec, draw(d))
    return sae, 3 * draw(n, d) + 1, torch.arange(n) % 5


def _plain_loss(sae: Sae, x: Tensor, token: Tensor, config: ReluL1Config, dead: Tensor) -> Tensor:
    """Spec 2.3 and 2.4, word for word, for autograd."""
    h = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    f = torch.relu(h)
    x_hat = f @ sae.W_dec + sae.b_dec
    norm = x.norm(dim=1, keepdim=True)
    m = (x_hat - x) ** 2 / norm
    weight = torch.where(token == 0, config.mse_cls_coefficient, 1.0)[:, None]
    loss = (m * weight).mean() + config.l1_coefficient * f.abs().sum(dim=1).mean()
    if dead.any():
        r = (x - x_hat).detach()
        g = torch.exp(h[:, dead]) @ sae.W_dec[dead]
        g = g * (r.norm(dim=1, keepdim=True) / (1e-6 + 2 * g.norm(dim=1, keepdim=True))).detach()
        q = (g - r) ** 2 / r.norm(dim=1, keepdim=True)
        loss = loss + (q * (m / (q + 1e-6)).detach()).mean()
    return loss


@pytest.mark.parametrize("max_density", [DENSE, SPARSE])
@pytest.mark.parametrize("n_dead", [0, 9])
def test_written_out_gradients_are_autograds(n_dead: int, max_density: float) -> None:
    sae, x, token = _problem()
    config = _config(l1_coefficient=0.01, mse_cls_coefficient=1.7, dead_feature_window=3)
    objective = ReluL1(config, sae, max_density)
    objective.autoencoder.steps_since_fired[:n_dead] = 4
    objective.autoencoder.steps_since_fired[n_dead:] = 3
    found = objective.gradients(x, token)

    plain = Sae(*(getattr(sae, name).double().requires_grad_() for name in NAMES))
    loss = _plain_loss(plain, x.double(), token, config, torch.arange(70) < n_dead)
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), rel=1e-5)
    W, gradient = plain.W_dec.detach(), plain.W_dec.grad
    assert gradient is not None
    plain.W_dec.grad = gradient - (gradient * W).sum(1, keepdim=True) * W
    for name, mine in _named(objective, grad=True).items():
        expected = getattr(plain, name).grad
        torch.testing.assert_close(
            mine.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
        )


def test_blocks_of_tokens_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x, token = _problem()
    for max_density in (DENSE, SPARSE):
        found = []
        for rows in (1000, 7):
            monkeypatch.setattr(
                "patchsae.pipeline.saes.sparse.encoder.tokens_per_block", lambda _, rows=rows: rows
            )
            monkeypatch.setattr("patchsae.pipeline.saes.sparse.encoder._LEAST_ROWS", rows)
            monkeypatch.setattr("patchsae.pipeline.saes.sparse.encoder._MAX_ENTRIES", 0)
            monkeypatch.setattr(
                "patchsae.pipeline.training.objectives.relu_l1.tokens_per_block", lambda _, rows=rows: rows
            )
            objective = ReluL1(_config(dead_feature_window=0), sae, max_density)
            objective.autoencoder.steps_since_fired[::3] = 1
            result = objective.gradients(x, token)
            found.append((result, _named(objective, grad=True), objective.autoencoder.steps_since_fired))
        (whole, whole_grad, whole_state), (parts, parts_grad, parts_state) = found
        assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
        assert parts.l0 == whole.l0
        assert torch.equal(whole_state, parts_state)
        # The ghost term divides by q, which is nearly 0 at some elements: there the order of sums shows.
        for name in NAMES:
            assert (parts_grad[name] - whole_grad[name]).norm() < 1e-3 * whole_grad[name].norm()


def test_loss_in_closed_form() -> None:
    """One token x = (3, 4), one latent along x / |x| that gives back half of it: every term by hand."""
    unit = torch.tensor([0.6, 0.8])
    sae = Sae(0.5 * unit[:, None], torch.zeros(1), unit[None], torch.zeros(2))
    found = ReluL1(_config(l1_coefficient=0.1), sae).gradients(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))
    assert found.l0 == 1
    assert found.l1_norm == pytest.approx(2.5)
    assert found.penalty == pytest.approx(0.25)
    assert found.reconstruction == pytest.approx(
        (1.5**2 + 2**2) / 5 / 2
    )  # by |x| = 5, mean over two channels
    assert found.loss == pytest.approx(found.reconstruction + found.penalty)


def test_ghost_term_in_closed_form() -> None:
    """A dead latent at pre-activation -2 along the second axis; the residual is x = (3, 4) itself.

    g = exp(-2) (0, 1), scaled to half the residual's length: (0, 2.5). Its loss is balanced, element by element,
    to the reconstruction loss m; where g is 0 too, q = r^2 / |r| > 0 keeps that so.
    """
    sae = Sae(torch.zeros(2, 1), torch.tensor([-2.0]), torch.tensor([[0.0, 1.0]]), torch.zeros(2))
    objective = ReluL1(_config(dead_feature_window=0), sae)
    objective.autoencoder.steps_since_fired[:] = 1
    found = objective.gradients(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))
    assert found.reconstruction == pytest.approx((9 / 5 + 16 / 5) / 2)
    assert found.auxiliary == pytest.approx(found.reconstruction, rel=1e-5)
    # d L / d g_2 = m_2 / q_2 * 2 (g_2 - r_2) / |r| / 2, and d g_2 / d h = g_2 since g grows like exp(h).
    m, q = 16 / 5, (2.5 - 4) ** 2 / 5
    assert objective.parameters["b_enc"].grad is not None
    assert objective.parameters["b_enc"].grad.item() == pytest.approx(m / q * (2.5 - 4) / 5 * 2.5, rel=1e-4)


def test_ghosts_use_pre_activations() -> None:
    """Two dead latents at different depths under 0 get different gradients; exp(relu(h)) would make them equal."""
    W_dec = torch.eye(2)
    sae = Sae(torch.zeros(2, 2), torch.tensor([-1.0, -3.0]), W_dec, torch.zeros(2))
    objective = ReluL1(_config(dead_feature_window=0), sae)
    objective.autoencoder.steps_since_fired[:] = 1
    objective.gradients(torch.tensor([[4.0, 4.0]]), torch.tensor([1]))
    assert objective.parameters["b_enc"].grad is not None
    assert objective.parameters["b_enc"].grad[0].abs() > 3 * objective.autoencoder.b_enc.grad[1].abs()


def test_without_ghosts_dead_latents_have_no_gradient() -> None:
    sae, x, token = _problem()
    sae.b_enc[:9] = -100
    objective = ReluL1(_config(ghost_gradients=False, dead_feature_window=0), sae)
    objective.autoencoder.steps_since_fired[:9] = 5
    assert objective.gradients(x, token).auxiliary == 0
    for name in ("encoder", "b_enc", "W_dec"):
        gradient = objective.parameters[name].grad
        assert gradient is not None
        assert not gradient[:9].any()
    assert objective.autoencoder.steps_since_fired[:9].tolist() == [6] * 9


def test_weights_start_as_the_reference_s() -> None:
    d, n_latents = 48, 3000
    W_enc, W_dec = reference_weights(d, n_latents, torch.Generator().manual_seed(0))
    bound = math.sqrt(6 / n_latents)  # not sqrt(6 / d)
    assert 0.99 * bound < W_enc.abs().max() <= bound
    assert W_enc.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    torch.testing.assert_close(W_dec.norm(dim=1), torch.ones(n_latents))
    assert torch.nn.functional.cosine_similarity(W_enc.T, W_dec).abs().mean() < 0.2  # not tied


def test_geometric_median_against_plain_descent() -> None:
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(1)).double()
    points[:8] += 30  # outliers, which pull a mean and hardly a median

    def distance(point: np.ndarray) -> float:
        return float(np.linalg.norm(points.numpy() - point, axis=1).sum())

    plain = minimize(distance, points.mean(0).numpy(), tol=1e-10).x
    median = geometric_median(points)
    np.testing.assert_allclose(median, plain, atol=1e-4)
    assert distance(median.numpy()) <= distance(plain) < distance(points.mean(0).numpy())


def test_geometric_median_of_a_line_is_its_median() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [3.0, 3.0], [100.0, 100.0]])
    torch.testing.assert_close(geometric_median(points).float(), torch.tensor([2.0, 2.0]), atol=1e-4, rtol=0)


def test_decoder_bias_kinds() -> None:
    sample = torch.randn(6 * 5, 4, generator=torch.Generator().manual_seed(2)) + 2
    images = sample.view(6, 5, 4)
    torch.testing.assert_close(decoder_bias("mean", sample, 5), images.mean((0, 1)))
    assert decoder_bias("zeros", sample, 5).tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(
        decoder_bias("geometric_median", sample, 5), geometric_median(images.flatten(0, 1)).float()
    )
    reference = geometric_median(images.flatten(1)).view(5, 4).mean(0).float()
    torch.testing.assert_close(decoder_bias("geometric_median_reference", sample, 5), reference)
    assert not torch.allclose(reference, decoder_bias("geometric_median", sample, 5), atol=1e-4)


def test_the_reference_s_median_needs_whole_images() -> None:
    with pytest.raises(ValidationError, match="set mix: images"):
        _config(b_dec_init="geometric_median_reference")
    _config(b_dec_init="geometric_median_reference", mix="images")


def test_a_unit_decoder_is_the_same_function() -> None:
    sae, x, _ = _problem()
    sae = Sae(sae.W_enc, sae.b_enc, sae.W_dec * torch.linspace(0.5, 2, 70)[:, None], sae.b_dec)
    as_is = ReluL1(_config(), sae).sae()
    unit = as_is.with_unit_decoder()
    torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones(70))
    assert all(torch.equal(getattr(as_is, name), getattr(sae, name)) for name in NAMES)
    decode = lambda s: s.encode(x) @ s.W_dec + s.b_dec  # noqa: E731
    torch.testing.assert_close(decode(unit), decode(as_is), rtol=1e-5, atol=1e-5)


def test_a_seed_means_one_set_of_weights() -> None:
    sample = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    a, b, c = (_config(seed=seed, n_latents=20).objective(sample, 5).sae() for seed in (1, 1, 2))
    assert torch.equal(a.W_enc, b.W_enc) and torch.equal(a.W_dec, b.W_dec)
    assert not torch.equal(a.W_enc, c.W_enc)
    assert _config(expansion=3).objective(sample, 5).sae().n_latents == 18
