"""How good an SAE is: FVU, cosine, L0, and shares of dead and dense latents, summed over batches of tokens.

Training uses `Reconstruction` for its metrics, the evaluation `reconstruction` uses `Quality`.

Shapes: n tokens, d channels, S latents.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.core.sums import total
from patchsae.pipeline.saes.encode import LatentEncoder
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.latents import Latents
from patchsae.storage.manifest import Summary
from patchsae.storage.scratch import ScratchArrays

_N_SCALARS = 5


class Reconstruction:
    """Sums over tokens, in float64, from which the quality of a reconstruction is computed."""

    def __init__(self, width: int, device: str = "cpu") -> None:
        self.width = width
        # [5 + d]: the number of tokens, the sums of |x - x_hat|^2, |x|^2, |x - x_hat|^2 / |x| and the cosine,
        # and the sum of x. It is one tensor, so that ranks can add theirs in one exchange.
        self.sums = torch.zeros(_N_SCALARS + width, dtype=torch.float64, device=device)

    def add(self, x: Tensor, x_hat: Tensor) -> None:
        """Adds tokens `x` and their reconstruction `x_hat`, both [n, d]."""
        error = (x - x_hat).square_().sum(dim=1, dtype=torch.float64)
        power = x.square().sum(dim=1, dtype=torch.float64)
        cosine = torch.cosine_similarity(x, x_hat, dim=1).double()
        length = power.sqrt()
        # A token of length 0 counts 0.
        per_length = torch.where(length > 0, error / length, 0.0)
        # As rows of one tensor: a sum over all elements would depend on the number of threads, sums of rows do
        # not (`pipeline.core.sums`).
        rows = torch.stack([torch.ones_like(cosine), error, power, per_length, cosine])
        self.sums += torch.cat([rows.sum(dim=1), x.sum(dim=0, dtype=torch.float64)])

    @property
    def n_tokens(self) -> int:
        return int(self.sums[0])

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained: `sum |x - x_hat|^2 / sum |x - mean(x)|^2`, over all tokens."""
        n, error, power = self.sums[:3].tolist()
        return error / (power - self.sums[_N_SCALARS:].square().sum().item() / n)

    @property
    def explained_variance(self) -> float:
        """`1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2`."""
        return 1 - self.fvu

    @property
    def explained_variance_uncentred(self) -> float:
        """`1 - sum |x - x_hat|^2 / sum |x|^2`: the reference's, never below the centred one (spec 2.8)."""
        return 1 - (self.sums[1] / self.sums[2]).item()

    @property
    def mse(self) -> float:
        """Mean over tokens and channels of `(x_hat - x)^2`."""
        return (self.sums[1] / self.sums[0]).item() / self.width

    @property
    def mse_per_norm(self) -> float:
        """Mean over tokens and channels of `(x_hat - x)^2 / |x|`, which the paper calls MSE (spec 2.3)."""
        return (self.sums[3] / self.sums[0]).item() / self.width

    @property
    def cosine(self) -> float:
        """Mean over tokens of the cosine between x and x_hat."""
        return (self.sums[4] / self.sums[0]).item()


# A latent that fires on more than this share of tokens says little about any of them.
DENSE_FREQUENCY = 0.1


def firing_summary(n_fired: np.ndarray, n_tokens: int, dense_above: float = DENSE_FREQUENCY) -> Summary:
    """How often latents fire: L0, and the shares of latents that are dead or dense, over `n_tokens` tokens.

    `n_fired` [S] is the number of tokens on which each latent is above 0. A latent is dead if that is 0, and
    dense if it is more than `dense_above * n_tokens`. Both shares depend on the number of tokens, so it is
    returned too.
    """
    return {
        "l0": float(n_fired.sum()) / n_tokens,
        "dead_fraction": float((n_fired == 0).mean()),
        "dense_fraction": float((n_fired > dense_above * n_tokens).mean()),
        "n_latents": len(n_fired),
        "n_tokens": n_tokens,
    }


class Quality:
    """Sums over tokens from which every measure of an SAE is computed.

    Parts of the work are added up by `merge`, which takes the `arrays` of a part.
    """

    def __init__(self, width: int, n_latents: int, device: str = "cpu") -> None:
        self.reconstruction = Reconstruction(width, device)
        self.n_fired = torch.zeros(n_latents, dtype=torch.int64, device=device)
        self.l1_norm = 0.0

    def add(self, x: Tensor, x_hat: Tensor, latents: Latents) -> None:
        """Adds tokens `x`, their reconstruction `x_hat`, both [n, d], and their latents."""
        self.reconstruction.add(x, x_hat)
        self.n_fired += latents.n_tokens_on()
        self.l1_norm += total(latents.value)

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            "reconstruction": self.reconstruction.sums.cpu().numpy(),
            "n_fired": self.n_fired.cpu().numpy(),
            "l1_norm": np.array([self.l1_norm]),
        }

    def merge(self, arrays: ScratchArrays | dict[str, np.ndarray]) -> None:
        """Adds the `arrays` of a `Quality` of other tokens."""
        self.reconstruction.sums += torch.from_numpy(np.array(arrays["reconstruction"]))
        self.n_fired += torch.from_numpy(np.array(arrays["n_fired"]))
        self.l1_norm += float(arrays["l1_norm"][0])

    def summary(self) -> Summary:
        found = self.reconstruction
        return {
            "fvu": found.fvu,
            "explained_variance": found.explained_variance,
            "explained_variance_uncentred": found.explained_variance_uncentred,
            "mse": found.mse,
            "mse_per_norm": found.mse_per_norm,
            "cosine": found.cosine,
            "l1_norm": self.l1_norm / found.n_tokens,
            **firing_summary(self.n_fired.cpu().numpy(), found.n_tokens),
        }


def evaluate(sae: Sae, batches: Iterable[Tensor]) -> Summary:
    """The quality of an SAE over batches of tokens, each [n, d]."""
    encoder = LatentEncoder(sae)
    quality = Quality(sae.width, sae.n_latents, str(sae.b_enc.device))
    for x in batches:
        for rows, latents in encoder.blocks(x):
            quality.add(x[rows], latents.decode(latents.value, sae.W_dec) + sae.b_dec, latents)
    return quality.summary()
