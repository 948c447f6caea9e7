"""What is measured while an SAE trains, and at its end.

Shapes: n tokens, d channels, S latents.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.latents import decode, encode
from pipeline.saes.base import Sae
from storage.artifacts import Summary
from storage.tables import Column, TableSchema

TRAINING = TableSchema(
    "training",
    "Training metrics of single steps, each over that step's batch and before its update.",
    (
        Column("step", pa.int64(), "Optimiser steps taken, this one included."),
        Column("n_tokens", pa.int64(), "Tokens trained on so far, this step's included."),
        Column("loss", pa.float64(), "mse + l1 + ghost."),
        Column(
            "mse",
            pa.float64(),
            "Mean over tokens and channels of (x_hat - x)^2 / |x|, first tokens weighted.",
        ),
        Column("l1", pa.float64(), "l1_coefficient * l1_norm."),
        Column("l1_norm", pa.float64(), "Mean over tokens of the sum of latents."),
        Column("ghost", pa.float64(), "Ghost loss of the dead latents; 0 where none is dead."),
        Column("l0", pa.float64(), "Mean over tokens of the number of latents above 0."),
        Column(
            "explained_variance",
            pa.float64(),
            "1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2, summed in float64 over tokens and channels.",
        ),
        Column(
            "explained_variance_uncentred",
            pa.float64(),
            "1 - sum |x - x_hat|^2 / sum |x|^2: what the reference logs as explained variance.",
        ),
        Column("n_dead", pa.int64(), "Latents that have not fired for more than dead_feature_window steps."),
        Column("lr", pa.float64(), "Learning rate of this step."),
    ),
)


class Reconstruction:
    """Sums over tokens, in float64, from which the quality of a reconstruction is told."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self._error = 0.0
        self._power = 0.0
        self._normalised_error = 0.0
        self._sum: Tensor | None = None

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        """Tokens [n, d] and their reconstruction."""
        x, x_hat = x.double(), x_hat.double()
        error = (x - x_hat).square().sum(dim=1)
        power = x.square().sum(dim=1)
        self.n_tokens += len(x)
        self._error += error.sum().item()
        self._power += power.sum().item()
        self._normalised_error += (error / power.sqrt()).sum().item() / x.shape[1]
        self._sum = x.sum(dim=0) if self._sum is None else self._sum + x.sum(dim=0)

    @property
    def explained_variance(self) -> float:
        """`1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2`."""
        assert self._sum is not None
        variance = self._power - self._sum.square().sum().item() / self.n_tokens
        return 1 - self._error / variance

    @property
    def explained_variance_uncentred(self) -> float:
        """`1 - sum |x - x_hat|^2 / sum |x|^2`, the reference's (spec 2.8); never below the centred one."""
        return 1 - self._error / self._power

    @property
    def mse(self) -> float:
        """Mean over tokens and channels of `(x_hat - x)^2 / |x|`, the loss's (spec 2.3)."""
        return self._normalised_error / self.n_tokens


@torch.inference_mode()
def evaluate(sae: Sae, batches: Iterable[Tensor]) -> Summary:
    """The final numbers of an SAE over tokens [n, d] that come in batches."""
    reconstruction = Reconstruction()
    n_active, l1_norm = 0, 0.0
    fired = torch.zeros(sae.n_latents, dtype=torch.bool, device=sae.b_enc.device)
    for x in batches:
        latents = encode(sae, x)
        reconstruction.add(x, decode(latents, sae.W_dec) + sae.b_dec)
        n_active += len(latents.value)
        l1_norm += latents.value.sum(dtype=torch.float64).item()
        fired[latents.latent.long()] = True
    return {
        "explained_variance": reconstruction.explained_variance,
        "explained_variance_uncentred": reconstruction.explained_variance_uncentred,
        "mse": reconstruction.mse,
        "l0": n_active / reconstruction.n_tokens,
        "l1_norm": l1_norm / reconstruction.n_tokens,
        "dead_fraction": 1 - int(fired.sum()) / sae.n_latents,
        "n_eval_tokens": reconstruction.n_tokens,
    }
