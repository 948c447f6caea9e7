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
        Column("loss", pa.float64(), "reconstruction + penalty + auxiliary."),
        Column(
            "reconstruction",
            pa.float64(),
            "Reconstruction term of the loss: as the objective normalises it (relu_l1: mean over tokens and channels "
            "of (x_hat - x)^2 / |x|, first tokens weighted; others: mean |x - x_hat|^2 / variance).",
        ),
        Column(
            "penalty",
            pa.float64(),
            "Sparsity term of the loss, coefficient included; 0 for TopK and its kin.",
        ),
        Column("auxiliary", pa.float64(), "Ghost or AuxK loss of the dead latents; 0 where none is dead."),
        Column("l1_norm", pa.float64(), "Mean over tokens of the sum of latents."),
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
        Column("grad_norm", pa.float64(), "Length of the gradient over all parameters, before clipping."),
        Column("lr", pa.float64(), "Learning rate of this step."),
    ),
)


class Reconstruction:
    """Sums over tokens, in float64, from which the quality of a reconstruction is told."""

    def __init__(self, width: int, device: str = "cpu") -> None:
        self.width = width
        # Tokens, error, power, error / |x|, cosine, then the sum of x: [5 + d]. One tensor, so that ranks add up.
        self.sums = torch.zeros(5 + width, dtype=torch.float64, device=device)

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        """Tokens [n, d] and their reconstruction."""
        error = (x - x_hat).square_().sum(dim=1, dtype=torch.float64)
        power = x.square().sum(dim=1, dtype=torch.float64)
        cosine = torch.cosine_similarity(x, x_hat, dim=1).sum(dtype=torch.float64)
        length = power.sqrt()
        n = torch.full_like(cosine, len(x))
        sums = torch.stack([n, error.sum(), power.sum(), (error / length).sum(), cosine])
        self.sums += torch.cat([sums, x.sum(dim=0, dtype=torch.float64)])

    @property
    def n_tokens(self) -> int:
        return int(self.sums[0])

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained, `sum |x - x_hat|^2 / sum |x - mean(x)|^2`, about the mean of all tokens."""
        n, error, power = self.sums[:3].tolist()
        return error / (power - self.sums[5:].square().sum().item() / n)

    @property
    def explained_variance(self) -> float:
        """`1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2`."""
        return 1 - self.fvu

    @property
    def explained_variance_uncentred(self) -> float:
        """`1 - sum |x - x_hat|^2 / sum |x|^2`, the reference's (spec 2.8); never below the centred one."""
        return 1 - (self.sums[1] / self.sums[2]).item()

    @property
    def mse(self) -> float:
        """Mean over tokens and channels of `(x_hat - x)^2`."""
        return (self.sums[1] / self.sums[0]).item() / self.width

    @property
    def mse_per_norm(self) -> float:
        """Mean over tokens and channels of `(x_hat - x)^2 / |x|`: what the paper reports as MSE (spec 2.3)."""
        return (self.sums[3] / self.sums[0]).item() / self.width

    @property
    def cosine(self) -> float:
        """Mean over tokens of the cosine between x and x_hat."""
        return (self.sums[4] / self.sums[0]).item()


# A latent that fires on more than this share of tokens says little about any of them.
DENSE_FREQUENCY = 0.1


@torch.inference_mode()
def evaluate(sae: Sae, batches: Iterable[Tensor]) -> Summary:
    """The final numbers of an SAE over tokens [n, d] that come in batches."""
    reconstruction = Reconstruction(sae.width, str(sae.b_enc.device))
    n_active, l1_norm = 0, 0.0
    n_fired = torch.zeros(sae.n_latents, dtype=torch.int64, device=sae.b_enc.device)
    for x in batches:
        latents = encode(sae, x)
        reconstruction.add(x, decode(latents, sae.W_dec) + sae.b_dec)
        n_active += len(latents.value)
        l1_norm += latents.value.sum(dtype=torch.float64).item()
        n_fired += torch.bincount(latents.latent, minlength=sae.n_latents)
    n = reconstruction.n_tokens
    return {
        "explained_variance": reconstruction.explained_variance,
        "explained_variance_uncentred": reconstruction.explained_variance_uncentred,
        "fvu": reconstruction.fvu,
        "mse": reconstruction.mse,
        "mse_per_norm": reconstruction.mse_per_norm,
        "cosine": reconstruction.cosine,
        "l0": n_active / n,
        "l1_norm": l1_norm / n,
        "dead_fraction": (n_fired == 0).double().mean().item(),
        "dense_fraction": (n_fired > DENSE_FREQUENCY * n).double().mean().item(),
        "n_eval_tokens": n,
    }
