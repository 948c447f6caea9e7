"""What is told of an SAE's quality, in closed form and against a plain dense computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from patchsae.pipeline.saes.encode import EncoderChoice, LatentEncoder
from patchsae.pipeline.saes.quality import Quality, Reconstruction, evaluate, firing_summary
from tests.support import our_saes, peer_saes
from tests.support.our_saes import KINDS, reconstruct


def test_reconstruction_in_closed_form() -> None:
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 1.0]])
    x_hat = torch.tensor([[3.0, 3.0], [6.0, 9.0], [2.0, 1.0]])
    found = Reconstruction(2)
    found.add(x[:1], x_hat[:1])
    found.add(x[1:], x_hat[1:])
    variance = (9 + 36 + 0) - 27 / 9 * 9 + (16 + 64 + 1) - 13**2 / 3
    assert found.explained_variance == pytest.approx(1 - 6 / variance)
    assert found.explained_variance_uncentred == pytest.approx(1 - 6 / (25 + 100 + 1))
    assert found.fvu == pytest.approx(6 / variance)
    assert found.mse == pytest.approx(6 / 3 / 2)
    assert found.mse_per_norm == pytest.approx((1 / 5 + 1 / 10 + 4 / 1) / 3 / 2)
    cosines = [21 / (5 * math.sqrt(18)), 108 / (10 * math.sqrt(117)), 1 / math.sqrt(5)]
    assert found.cosine == pytest.approx(sum(cosines) / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_quality_against_a_plain_dense_computation(kind: str) -> None:
    sae, x = our_saes.make(kind), peer_saes.tokens()
    summary = evaluate(sae, [x[:7], x[7:]])
    f, X, X_hat = sae.encode(x).double(), x.double(), reconstruct(sae, x).double()
    error, variance = (X - X_hat).square(), (X - X.mean(0)).square().sum()
    n_fired = (f > 0).sum(0)
    expected = {
        "fvu": error.sum() / variance,
        "explained_variance": 1 - error.sum() / variance,
        "explained_variance_uncentred": 1 - error.sum() / X.square().sum(),
        "mse": error.mean(),
        "mse_per_norm": (error / X.norm(dim=1, keepdim=True)).mean(),
        "cosine": torch.cosine_similarity(X, X_hat).mean(),
        "l1_norm": f.sum(1).mean(),
        "l0": (f > 0).sum(1).double().mean(),
        "dead_fraction": (n_fired == 0).double().mean(),
        "dense_fraction": (n_fired > 0.1 * len(x)).double().mean(),
        "n_latents": sae.n_latents,
        "n_tokens": len(x),
    }
    assert summary.keys() == expected.keys()
    for name, value in expected.items():
        assert summary[name] == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("max_density", [0.0, 1.0])
def test_the_quality_of_parts_adds_up(max_density: float) -> None:
    sae, x = our_saes.make("relu"), peer_saes.tokens()
    encoder = LatentEncoder(sae, EncoderChoice("float32", max_density))

    def quality(*batches: torch.Tensor) -> Quality:
        found = Quality(sae.width, sae.n_latents)
        for batch in batches:
            for rows, latents in encoder.blocks(batch):
                found.add(batch[rows], reconstruct(sae, batch[rows]), latents)
        return found

    whole, merged = quality(x), Quality(sae.width, sae.n_latents)
    for part in (x[:11], x[11:12], x[12:]):
        merged.merge(quality(part).arrays())
    assert merged.summary() == pytest.approx(whole.summary(), rel=1e-6)


def test_firing_in_closed_form() -> None:
    found = firing_summary(np.array([0, 1, 2, 20, 7]), 20)
    # Dense: on more than 2 of 20 tokens.
    assert found == {
        "l0": 30 / 20,
        "dead_fraction": 1 / 5,
        "dense_fraction": 2 / 5,
        "n_latents": 5,
        "n_tokens": 20,
    }
    assert firing_summary(np.array([0, 1, 2, 20, 7]), 20, dense_above=0.5)["dense_fraction"] == 1 / 5
