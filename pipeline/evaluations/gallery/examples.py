"""Draws the examples of the table `latent_examples` among the images that fire a latent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class LatentFirings:
    """The images that fire each of some latents, in the order of latents and then of images: arrays [P]."""

    latent: np.ndarray  # int64
    image: np.ndarray  # int64: position in the sample
    activation: np.ndarray  # float32: token mean
    token: np.ndarray  # int64: first token with the largest activation
    peak: np.ndarray  # float32: that activation

    def take(self, which: np.ndarray) -> LatentFirings:
        return LatentFirings(**{f.name: getattr(self, f.name)[which] for f in fields(self)})


def examples(
    firings: LatentFirings,
    bands: Sequence[tuple[float, float]],
    n_per_band: int,
    image_draws: np.ndarray,
    latent_draws: np.ndarray,
) -> dict[str, np.ndarray]:
    """`low`, `high` and `rank` of every example, and which firing it is (`firing`), ordered by latent and band.

    In a band the images with the smallest draws are taken, `image_draws[image] ^ latent_draws[latent]`. So the result
    depends on the latent's images alone, and not on the order in which they were found.
    """
    order = np.lexsort((firings.image, -firings.activation, firings.latent))
    latent = firings.latent[order]
    first = np.searchsorted(latent, latent)
    n = np.searchsorted(latent, latent, side="right") - first
    place = n - 1 - (np.arange(len(order)) - first)
    draw = image_draws[firings.image[order]] ^ latent_draws[latent]
    found = []
    for number, (low, high) in enumerate(bands):
        # Rounded, because 0.15 * 20 is slightly more than 3 in floating point.
        least, end = np.floor(np.round(low * n, 6)), np.ceil(np.round(high * n, 6))
        inside = np.flatnonzero((place >= least) & (place < end))
        of_band = latent[inside]
        drawn = np.lexsort((draw[inside], of_band))
        nth = np.arange(len(drawn)) - np.searchsorted(of_band[drawn], of_band[drawn])
        # In `order` the largest activation comes first.
        chosen = np.sort(inside[drawn[nth < n_per_band]])
        rank = np.arange(len(chosen)) - np.searchsorted(latent[chosen], latent[chosen]) + 1
        found.append((np.full(len(chosen), number), chosen, rank))
    band, chosen, rank = (np.concatenate(columns) for columns in zip(*found, strict=True))
    sort = np.lexsort((rank, band, latent[chosen]))
    ends = np.array(bands, np.float32)[band[sort]]
    return {"low": ends[:, 0], "high": ends[:, 1], "rank": rank[sort], "firing": order[chosen[sort]]}
