"""Every objective's written-out gradients against autograd on the formulas of its module, dense and in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.encoder import Encoder, EncoderWeights, positive_latents, top_latents
from patchsae.pipeline.saes.sparse.latents import DenseLatents, SparseLatents
from patchsae.pipeline.training.initialisation import ENCODER_SCALES
from patchsae.pipeline.training.objective import Objective
from patchsae.pipeline.training.objectives.batch_topk import BatchTopKConfig, PerBatch
from patchsae.pipeline.training.objectives.gated import Gated, GatedConfig
from patchsae.pipeline.training.objectives.jumprelu import JumpRelu, JumpReluConfig
from patchsae.pipeline.training.objectives.matryoshka import MatryoshkaConfig
from patchsae.pipeline.training.objectives.topk import TopKConfig
from patchsae.pipeline.training.parameters import Autoencoder
from patchsae.pipeline.training.process_group import ALONE
from patchsae.pipeline.training.selected import total_variance
from patchsae.storage.errors import UserError

N, D, S, K = 60, 12, 70, 6
DENSE, SPARSE = 0.0, 1.0
Plain = Callable[[dict[str, Tensor], Tensor, Tensor], tuple[Tensor, Tensor]]


def _config(kind: type, **settings: Any) -> Any:
    return kind(
        **{"dataset": "d", "backbone": "b", "n_latents": S, "auxk": 4, "auxk_coefficient": 0.5, **settings}
    )


def _sample(seed: int = 0) -> Tensor:
    return 3 * torch.randn(N, D, generator=torch.Generator().manual_seed(seed)) + 1


def _stir(objective: Objective) -> None:
    """Parameters away from their start, where some gradients are 0 by symmetry."""
    generator = torch.Generator().manual_seed(7)
    for parameter in objective.parameters.values():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def _check(objective: Objective, plain: Plain, n_dead: int) -> None:
    _stir(objective)
    objective.state["steps_since_fired"][:n_dead] = 1000
    dead = torch.arange(S) < n_dead
    x = _sample(1)
    found = objective.gradients(x, torch.zeros(N, dtype=torch.int64))
    # After `gradients`, which begins by normalising the decoder.
    p = {name: tensor.double().requires_grad_() for name, tensor in objective.parameters.items()}
    loss, x_hat = plain(p, x.double(), dead)
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(found.x_hat.double(), x_hat, rtol=1e-4, atol=1e-4)
    gradient, W = p["W_dec"].grad, p["W_dec"].detach()
    assert gradient is not None
    p["W_dec"].grad = gradient - (gradient * W).sum(1, keepdim=True) * W
    for name, parameter in objective.parameters.items():
        mine, expected = parameter.grad, p[name].grad
        assert mine is not None and expected is not None
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(
            mine.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item(), msg=name
        )


def _h(p: dict[str, Tensor], x: Tensor) -> Tensor:
    return (x - p["b_dec"]) @ p["encoder"].T + p["b_enc"]


def _auxk(p: dict[str, Tensor], x: Tensor, x_hat: Tensor, dead: Tensor, variance: float) -> Tensor:
    if not dead.any():
        return x.new_zeros(())
    centred, residual = (x - p["b_dec"]).detach(), (x - x_hat).detach()
    h = centred @ p["encoder"][dead].T + p["b_enc"][dead]
    k = min(4, int(dead.sum()))
    f = h.relu() * torch.zeros_like(h).scatter(1, h.topk(k, dim=1).indices, 1.0)
    loss = (f @ p["W_dec"][dead] - residual).square().sum(1).mean() / variance
    return loss / 2 * min(1.0, int(dead.sum()) / 4)


def _selected(variance: float, prefixes: list[int], per_batch: bool) -> Plain:
    def loss(p: dict[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Tensor, Tensor]:
        h = _h(p, x).relu()
        kept = h >= h.flatten().topk(N * K).values[-1] if per_batch else h >= h.topk(K, dim=1).values[:, -1:]
        f = h * kept
        losses = []
        for end in prefixes:
            x_hat = f[:, :end] @ p["W_dec"][:end] + p["b_dec"]
            losses.append((x_hat - x).square().sum(1).mean() / variance)
        return torch.stack(losses).mean() + _auxk(p, x, x_hat, dead, variance), x_hat

    return loss


@pytest.mark.parametrize("n_dead", [0, 2, 9])
@pytest.mark.parametrize(
    ("config", "prefixes", "per_batch"),
    [
        (_config(TopKConfig, k=K), [S], False),
        (_config(BatchTopKConfig, k=K), [S], True),
        (_config(MatryoshkaConfig, k=K, selection="topk", prefixes=[0.1, 0.5, 1]), [7, 35, S], False),
        (_config(MatryoshkaConfig, k=K, selection="batch_topk", prefixes=[0.3, 1]), [21, S], True),
    ],
    ids=["topk", "batch_topk", "matryoshka-topk", "matryoshka-batch_topk"],
)
def test_selected(config: Any, prefixes: list[int], per_batch: bool, n_dead: int) -> None:
    objective = config.objective(_sample(), 5)
    _check(objective, _selected(total_variance(_sample()), prefixes, per_batch), n_dead)


@pytest.mark.parametrize(("n_dead", "share"), [(4, 1.0), (9, 1.0), (3, 0.75)])
def test_auxk_is_32_fvu_times_that_of_its_paper(n_dead: int, share: float) -> None:
    """The weight that `pipeline.training.auxk` tells, against Gao et al.'s published loss."""
    objective = _config(TopKConfig, k=K, auxk_coefficient=1.0).objective(_sample(), 5)
    _stir(objective)
    x, variance = _sample(1), total_variance(_sample())
    objective.gradients(x, torch.zeros(N, dtype=torch.int64))
    model = objective.autoencoder
    model.steps_since_fired[:n_dead] = 1000
    # A residual whose mean over the batch is 0, so that its variance is FVU * V exactly.
    residual = 0.3 * (_sample(2) - _sample(2).mean(dim=0))
    fvu = residual.square().sum(1).mean().item() / variance
    mine = objective.auxk.add(model, x - model.b_dec, residual, N * variance, torch.float32)

    dead = torch.arange(S) < n_dead
    h = ((x - model.b_dec) @ model.encoder[dead].T + model.b_enc[dead]).relu()
    kept = h * torch.zeros_like(h).scatter(1, h.topk(min(4, n_dead), dim=1).indices, 1.0)
    squares = (kept @ model.W_dec[dead] - residual).square().mean()
    theirs = squares / (residual - residual.mean(dim=0)).square().mean() / 32
    assert mine == pytest.approx(share * 32 * fvu * theirs.item(), rel=1e-4)


class _Step(torch.autograd.Function):
    """H(h - theta) with a straight-through derivative by theta."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.width = width
        return (h > theta).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None]:
        h, theta = ctx.saved_tensors
        near = (((h - theta).abs() < ctx.width / 2) & (h > 0)).to(h.dtype)
        return None, (-near / ctx.width * gradients[0]).sum(0), None


class _Jump(torch.autograd.Function):
    """h H(h - theta), its derivative by theta as in the paper."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.width = width
        return h * (h > theta)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        h, theta = ctx.saved_tensors
        near = (((h - theta).abs() < ctx.width / 2) & (h > 0)).to(h.dtype)
        return gradients[0] * (h > theta), (-near * theta / ctx.width * gradients[0]).sum(0), None


@pytest.mark.parametrize("max_density", [DENSE, SPARSE])
@pytest.mark.parametrize("n_dead", [0, 9])
@pytest.mark.parametrize("bandwidth", [0.3, 2.0])
def test_jumprelu(max_density: float, n_dead: int, bandwidth: float) -> None:
    config = _config(JumpReluConfig, bandwidth=bandwidth, l0_coefficient=0.7, threshold_init=0.5)
    start = config.objective(_sample(), 5).sae()
    objective = JumpRelu(config, start, _sample(), max_density)
    variance = total_variance(_sample())

    def loss(p: dict[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Tensor, Tensor]:
        h, theta = _h(p, x).relu(), p["threshold"] * objective.unit
        f = _Jump.apply(h, theta, objective.bandwidth)  # type: ignore[no-untyped-call]
        x_hat = f @ p["W_dec"] + p["b_dec"]
        l0 = _Step.apply(h, theta, objective.bandwidth).sum(1).mean()  # type: ignore[no-untyped-call]
        total = (x_hat - x).square().sum(1).mean() / variance + 0.7 / D * l0
        return total + _auxk(p, x, x_hat, dead, variance), x_hat

    _check(objective, loss, n_dead)


@pytest.mark.parametrize(("settings", "is_whole"), [({}, True), ({"threshold_init": 0.01}, False)])
def test_the_window_of_a_threshold_starts_whole_by_default(
    settings: dict[str, float], is_whole: bool
) -> None:
    """Of a threshold below half the bandwidth, a part of the window is below 0, where nothing has a gradient."""
    objective = _config(JumpReluConfig, **settings).objective(_sample(), 5)
    h = _h(objective.parameters, _sample(1))
    near = (h - objective.threshold * objective.unit).abs() < objective.bandwidth / 2
    assert near.sum() > 50
    assert bool((h[near] > 0).all()) == is_whole


@pytest.mark.parametrize("max_density", [DENSE, SPARSE])
@pytest.mark.parametrize("n_dead", [0, 9])
def test_gated(max_density: float, n_dead: int) -> None:
    config = _config(GatedConfig, l1_coefficient=0.4)
    start = config.objective(_sample(), 5).sae()
    objective = Gated(config, start, _sample(), max_density)
    variance = total_variance(_sample())
    length = (_sample() - start.b_dec).norm(dim=1).mean().item()

    def loss(p: dict[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Tensor, Tensor]:
        product = (x - p["b_dec"]) @ p["encoder"].T
        gate = (product + p["b_enc"]).relu()
        f = (p["log_scale"].exp() * product + p["b_mag"]).relu() * (gate > 0)
        x_hat = f @ p["W_dec"] + p["b_dec"]
        x_gate = gate @ p["W_dec"].detach() + p["b_dec"].detach()
        total = ((x_hat - x).square() + (x_gate - x).square()).sum(1).mean() / variance
        total = total + 0.4 / length * gate.sum(1).mean()
        return total + _auxk(p, x, x_hat, dead, variance), x_hat

    _check(objective, loss, n_dead)


def test_a_gated_sae_is_saved_as_a_jumprelu() -> None:
    objective = _config(GatedConfig).objective(_sample(), 5)
    _stir(objective)
    found = objective.gradients(_sample(1), torch.zeros(N, dtype=torch.int64))
    sae = objective.sae()
    assert sae.activation == "jump_relu" and (sae.threshold > 0).any()
    torch.testing.assert_close(
        sae.encode(_sample(1)) @ sae.W_dec + sae.b_dec, found.x_hat, rtol=1e-4, atol=1e-4
    )


def _encoder(dtype: torch.dtype, n_latents: int = 500, shift: float = -1.5) -> Encoder:
    generator = torch.Generator().manual_seed(3)
    encoder = torch.randn(n_latents, 64, generator=generator) / 8
    x = torch.randn(300, 64, generator=generator)
    return Encoder(x, EncoderWeights(encoder, torch.full((n_latents,), shift), dtype))


def _product(encoder: Encoder) -> Tensor:
    """What it computes, in float32."""
    return encoder.x @ encoder.weights.encoder.T + encoder.weights.bias


def _dense(latents: SparseLatents) -> Tensor:
    dense = torch.zeros(latents.n_tokens, latents.n_latents)
    return dense.index_put_((latents.token(), latents.latent.long()), latents.value, accumulate=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 7, 100, 499, 500])
def test_top_latents_are_the_largest(dtype: torch.dtype, k: int) -> None:
    encoder = _encoder(dtype)
    h = _product(encoder).relu()
    largest = h.topk(k, dim=1)
    expected = torch.zeros_like(h).scatter(1, largest.indices, largest.values)
    latents = top_latents(encoder, k)
    assert latents.offsets.diff().unique().tolist() == [k]
    assert (latents.latent.view(-1, k).diff() >= 0).all()
    # What is so near 0 that bfloat16 does not know its sign may be missing.
    atol = 1e-5 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(_dense(latents), expected, rtol=1e-5, atol=atol)


def test_top_latents_of_tokens_that_are_all_alike() -> None:
    x, W = torch.ones(20, 4), torch.ones(30, 4)
    latents = top_latents(Encoder(x, EncoderWeights(W, torch.zeros(30), torch.bfloat16)), 3)
    assert _dense(latents).count_nonzero(dim=1).tolist() == [3] * 20
    none = top_latents(Encoder(x, EncoderWeights(W, torch.full((30,), -9.0))), 3)
    assert not none.value.any() and len(none.value) == 60


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 9, 450])
def test_the_largest_of_a_batch(dtype: torch.dtype, k: int) -> None:
    encoder = _encoder(dtype)
    h = _product(encoder).relu()
    cut = h.flatten().topk(300 * k).values[-1].clamp(min=1e-30)
    selection = PerBatch(k, 0.9, "cpu")
    found = _dense(selection.latents(encoder, ALONE))
    atol = 1e-5 if dtype == torch.float32 else 0.01
    torch.testing.assert_close(found, h * (h >= cut), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("shift", [-1.5, 1.0])
def test_bfloat16_finds_and_float32_computes(shift: float) -> None:
    encoder = _encoder(torch.bfloat16, shift=shift)
    h = _product(encoder).relu()
    for max_density in (DENSE, SPARSE):
        for rows, latents in positive_latents(encoder, max_density):
            if isinstance(latents, SparseLatents):
                f = _dense(latents).relu()
                torch.testing.assert_close(f, h[rows], rtol=1e-5, atol=0.02)
                sure = h[rows] > 0.02
                torch.testing.assert_close(f[sure], h[rows][sure], rtol=1e-5, atol=1e-5)
            else:
                torch.testing.assert_close(latents.value.float(), h[rows], rtol=0.02, atol=0.05)


def test_dense_and_sparse_products_are_equal() -> None:
    encoder = _encoder(torch.float32)
    W, A = torch.randn(500, 8), torch.randn(300, 8)
    [(_, dense)] = positive_latents(encoder, DENSE)
    [(_, sparse)] = positive_latents(encoder, SPARSE)
    assert isinstance(dense, DenseLatents) and isinstance(sparse, SparseLatents)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # noqa: E731
    close(dense.value, _dense(sparse))
    close(_dense(dense.sparse()), dense.value)
    close(dense.decode(dense.value, W), sparse.decode(sparse.value, W))
    product = dense.value.T @ A
    for latents in (dense, sparse):
        out = torch.full((500, 8), torch.nan)
        close(latents.transposed_product(latents.value, A, out), product)
        close(latents.transposed_product(latents.value, A, out, accumulate=True), 2 * product)
    close(dense.per_latent(dense.value), sparse.per_latent(sparse.value))
    close(dense.products(A, W), _dense(sparse.with_value(sparse.products(A, W))))
    vector = torch.rand(500)
    close(dense.spread(vector), _dense(sparse.with_value(sparse.spread(vector))))


def test_bad_hyperparameters_are_named() -> None:
    for kind in (TopKConfig, BatchTopKConfig, MatryoshkaConfig):
        with pytest.raises(UserError, match="k is 71, but the SAE has 70 latents; set a smaller k"):
            _config(kind, k=71).objective(_sample(), 5)
    for prefixes in ([0.5], [0.5, 0.2, 1], []):
        with pytest.raises(ValidationError, match="ascend and end in 1"):
            _config(MatryoshkaConfig, prefixes=prefixes)


@pytest.mark.parametrize("kind", [TopKConfig, BatchTopKConfig, MatryoshkaConfig, JumpReluConfig, GatedConfig])
def test_inits(kind: type) -> None:
    for init in ("transpose", "data_points", "reference"):
        config = _config(kind, init=init, encoder_scale=0.5)
        sae = config.objective(_sample(), 5).sae()
        tied = torch.allclose(sae.W_enc.T, sae.W_dec * config.encoder_scale, atol=1e-6)
        assert tied == (init != "reference")
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(S))
    points = _sample() - sae.b_dec
    sae = _config(kind, init="data_points").objective(_sample(), 5).sae()
    nearest = torch.cosine_similarity(sae.W_dec[:, None], points[None], dim=2).max(1).values
    assert nearest.min() > 0.9


@pytest.mark.parametrize("kind", [TopKConfig, JumpReluConfig])
def test_a_named_start_has_the_key_of_its_number(kind: type) -> None:
    for name, number in (("live_latents", 1), ("low_fvu", 0.1)):
        config = _config(kind, encoder_scale=name)
        assert config.encoder_scale == number
        assert config.key_config() == _config(kind, encoder_scale=number).key_config()
    # YAML reads `1e-1` as text.
    assert _config(kind, encoder_scale="1e-1").encoder_scale == 0.1
    with pytest.raises(ValidationError, match="write live_latents or low_fvu, or a number above 0"):
        _config(kind, encoder_scale="live")
    with pytest.raises(ValidationError, match="greater than 0"):
        _config(kind, encoder_scale=0)


def test_the_defaults_are_named_starts() -> None:
    for kind in (TopKConfig, BatchTopKConfig, MatryoshkaConfig):
        assert _config(kind).encoder_scale == ENCODER_SCALES["live_latents"]
    for kind in (JumpReluConfig, GatedConfig):
        assert _config(kind).encoder_scale == ENCODER_SCALES["low_fvu"]


def test_prefixes_of_one_latent_are_merged() -> None:
    config = _config(MatryoshkaConfig, k=1, n_latents=3, prefixes=[0.01, 0.02, 1], auxk_coefficient=0)
    assert config.objective(_sample(), 5).n_prefixes == 2


def test_a_scaled_sae_is_the_same_function() -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    for threshold, k in ((None, None), (draw(S).abs(), None), (None, 4)):
        sae = Sae(draw(D, S), draw(S), draw(S, D), draw(D), threshold, k)
        x = _sample()
        variants = [(sae.on_inputs_divided_by(2.5), 2.5)]
        if k is None:
            variants.append((sae.with_unit_decoder(), 1.0))
        for same, scale in variants:
            expected = (sae.encode(x * scale) @ sae.W_dec + sae.b_dec) / scale
            found = same.encode(x) @ same.W_dec + same.b_dec
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(sae.with_unit_decoder().W_dec.norm(dim=1), torch.ones(S))


def test_a_gradient_of_the_last_step_is_not_used_again() -> None:
    model = Autoencoder(_config(TopKConfig).objective(_sample(), 5).sae(), 10, ALONE, torch.float32)
    fired = torch.ones(len(model.b_enc), dtype=torch.bool)
    for _ in range(2):
        model.begin()
        for name, parameter in model.parameters.items():
            model.add(name, torch.zeros_like(parameter))
        model.finish(fired)
    model.begin()
    model.add("W_dec", torch.zeros_like(model.W_dec))
    with pytest.raises(ValueError, match="no gradient of b_dec, b_enc, encoder"):
        model.finish(fired)
