"""How much work the tables of a gallery are beside encoding, for predictions."""

from __future__ import annotations

import numpy as np

from patchsae.pipeline.core.machine import repeated
from patchsae.pipeline.core.prediction import Probe
from patchsae.pipeline.evaluations.gallery.cofiring import cofiring
from patchsae.pipeline.evaluations.gallery.examples import LatentFirings, examples
from patchsae.pipeline.evaluations.gallery.settings import GallerySettings

_LATENTS = 4096
_FIRINGS, _IMAGES = 200_000, 1000
_TOKENS, _PER_TOKEN = 500, 32


def drawing() -> Probe:
    """Ordering the images that fire a latent, and drawing examples. A unit is an image that fires a latent."""

    def measure() -> float:
        rng, settings = np.random.default_rng(0), GallerySettings()
        latent = np.sort(rng.integers(0, _LATENTS, _FIRINGS))
        image = rng.integers(0, _IMAGES, _FIRINGS)
        value = rng.random(_FIRINGS).astype(np.float32)
        firings = LatentFirings(latent, image, value, image, value)
        draws = settings.image_draws(_IMAGES), settings.latent_draws(_LATENTS)
        return repeated(lambda: examples(firings, settings.bands, settings.n_per_band, *draws), _FIRINGS)

    return Probe("drawing examples of latents", measure)


def pairing() -> Probe:
    """Counting latents that fire together. A unit is a pair of latents on one token."""

    def measure() -> float:
        rng = np.random.default_rng(0)
        latent = rng.integers(0, _LATENTS, (_TOKENS, _PER_TOKEN)).astype(np.int32)
        n = np.full(_TOKENS, _PER_TOKEN)
        return repeated(lambda: cofiring(n, latent.ravel(), _LATENTS, 20), latent.size * _PER_TOKEN)

    return Probe("counting pairs of latents", measure)
