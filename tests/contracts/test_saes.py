"""What every registered SAE objective must do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from patchsae.pipeline.core import registry
from patchsae.pipeline.training import objectives
from patchsae.pipeline.training.objective import TrainedSaeConfig

KINDS = registry.variants(objectives, TrainedSaeConfig)
SHARED: dict[str, Any] = {
    "dataset": "d",
    "backbone": "b",
    "n_latents": 48,
    "batch_size": 64,
    "n_steps": 20,
    "lr": 1e-2,
    "lr_warmup_steps": 1,
}
# Settings under which a kind does what is asked of all of them; a kind that needs none is not here.
OWN: dict[str, dict[str, Any]] = {"batch_topk": {"threshold_decay": 0}, "matryoshka": {"selection": "topk"}}


def config_of(kind: str) -> TrainedSaeConfig:
    """Every registered kind has one, a new one too."""
    sparsity = {"k": 5} if "k" in KINDS[kind].model_fields else {}
    return KINDS[kind](**SHARED, **sparsity, **OWN.get(kind, {}))


@pytest.fixture(params=sorted(KINDS))
def config(request: pytest.FixtureRequest) -> TrainedSaeConfig:
    return config_of(request.param)


def sample(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(12, 16, generator=torch.Generator().manual_seed(99))
    codes = torch.rand(64, 12, generator=generator) * (torch.rand(64, 12, generator=generator) < 0.2)
    return codes @ directions + 1.0


def trained(config: TrainedSaeConfig, n_steps: int = 20) -> tuple[list[float], dict[str, torch.Tensor]]:
    objective = config.objective(sample(0), 8)
    losses = []
    tokens = torch.arange(8).repeat(8)
    for step in range(n_steps):
        found = objective.gradients(sample(step), tokens)
        losses.append(found.loss)
        with torch.no_grad():
            for parameter in objective.parameters.values():
                assert parameter.grad is not None
                parameter -= 0.05 * parameter.grad
    return losses, objective.sae().tensors()


def test_the_same_seed_gives_the_same_bits(config: TrainedSaeConfig) -> None:
    (first, one), (second, two) = trained(config), trained(config)
    assert first == second
    assert all(torch.equal(one[name], two[name]) for name in one)
    _, other = trained(config.model_copy(update={"seed": 1}))
    assert not torch.equal(one["W_enc"], other["W_enc"])


def test_descending_its_gradients_lowers_its_loss(config: TrainedSaeConfig) -> None:
    losses, _ = trained(config, 60)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_saved_sae_reconstructs_as_the_objective_does(config: TrainedSaeConfig) -> None:
    objective = config.objective(sample(0), 8)
    x = sample(3)
    found = objective.gradients(x, torch.arange(8).repeat(8))
    sae = objective.sae()
    # Whether a latent that lies at its threshold is on hangs on the order of a sum.
    h = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    threshold = torch.zeros_like(sae.b_enc) if sae.threshold is None else sae.threshold
    sure = ((h - threshold).abs() > 1e-5 * h.abs()).all(dim=1)
    assert sure.sum() >= len(x) - 1
    x_hat = sae.encode(x) @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(x_hat[sure], found.x_hat[sure], rtol=1e-4, atol=1e-5)
    assert sae.W_enc.shape == (16, config.count_latents(16))


def test_names_are_not_hashed(config: TrainedSaeConfig) -> None:
    assert {"dataset", "backbone"}.isdisjoint(config.key_config())
