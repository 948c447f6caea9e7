"""The settings of the evaluation `gallery`, and what is drawn at random with its seed."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, field_validator

from patchsae.pipeline.core.config import Config

Share = Annotated[float, Field(ge=0, le=1)]

MOST_PAIRS = 1_000_000_000
"""Pairs of latents on one token that are counted for `cofiring`. Counting them takes less than a minute."""


class GallerySettings(Config):
    """What is shown of every latent."""

    n_images: Annotated[int, Field(ge=1)] = 10_000
    """Size of the sample: the first so many of the images that the statistics count, or all where there are fewer. A
    split's images are in a fixed pseudo-random order."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of what is drawn: the examples in a band, and the tokens on which latents fire together."""
    bands: tuple[tuple[Share, Share], ...] = ((0.95, 1.0), (0.45, 0.55), (0.05, 0.15))
    """Bands of quantiles from which examples are drawn. The images of the sample that fire a latent are ordered by
    their token mean; `[0.45, 0.55]` are those around the median."""
    n_per_band: Annotated[int, Field(ge=1)] = 8
    """Number of examples that are drawn in each band; all where there are fewer."""
    n_cofiring: Annotated[int, Field(ge=1)] = 20
    """Number of latents that are listed with each latent because they fire on the same tokens."""
    n_cofiring_tokens: Annotated[int, Field(ge=1)] = 100_000
    """About so many tokens of the sample are drawn to count which latents fire together; fewer where so many latents
    fire on a token that there would be more than a billion pairs."""
    n_embedded: Annotated[int, Field(ge=0)] = 2_000
    """The first so many images of the sample are embedded with the rest of the backbone, and each latent gets the mean
    embedding of those that fire it, which is searched with words. 0 embeds none."""

    @field_validator("bands")
    @classmethod
    def _in_order(cls, bands: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        for low, high in bands:
            if low >= high:
                raise ValueError(f"the band [{low:g}, {high:g}] is empty; give its lower end first")
        if not bands or len(set(bands)) < len(bands):
            raise ValueError("name one band or more, each once")
        return bands

    def share_of_tokens(self, n_tokens: int, l0: float) -> float:
        """The share of the sample's tokens that is drawn, if `l0` latents fire on a token."""
        most = min(self.n_cofiring_tokens, MOST_PAIRS / max(1.0, l0) ** 2)
        return min(1.0, max(1.0, most) / n_tokens)

    def drawn_tokens(self, n_images: int, tokens_per_image: int, share: float) -> np.ndarray:
        """Which tokens of the sample are drawn, each with the probability `share`: bool [images, tokens]."""
        raw = _raw(self.seed, 1, n_images * tokens_per_image).reshape(n_images, tokens_per_image)
        return raw <= np.uint64(min(share * 2.0**64, 2.0**64 - 2048))

    def image_draws(self, n_images: int) -> np.ndarray:
        """A random number for every image of the sample: uint64 [images]. In a band, the smallest are taken."""
        return _raw(self.seed, 2, n_images)

    def latent_draws(self, n_latents: int) -> np.ndarray:
        """A random number for every latent, uint64 [S]. With it, latents that fire on the same images do not draw the
        same examples."""
        return _raw(self.seed, 3, n_latents)


def _raw(seed: int, stream: int, n: int) -> np.ndarray:
    """Raw numbers of PCG64, whose stream NumPy guarantees."""
    return np.random.PCG64(np.random.SeedSequence((seed, stream))).random_raw(n)
