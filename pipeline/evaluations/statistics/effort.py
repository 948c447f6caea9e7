"""How much work counting dense latents is, for predictions."""

from __future__ import annotations

import numpy as np
import torch

from patchsae.pipeline.core.machine import repeated
from patchsae.pipeline.core.prediction import Probe
from patchsae.pipeline.evaluations.statistics.counts import PartCounts
from patchsae.pipeline.saes.sparse.latents import DenseLatents

_TOKENS, _LATENTS = 197, 8_192


def counting() -> Probe:
    """Counting one image's dense latents, half of which are on. A unit is a (token, latent) pair."""

    def measure() -> float:
        f = torch.randn(_TOKENS, _LATENTS, generator=torch.Generator().manual_seed(0)).clamp_(min=0)
        counts, image, label = PartCounts(_LATENTS, 1), np.zeros(1, np.int64), np.zeros(1, np.int64)
        return repeated(lambda: counts.add(DenseLatents(f), image, label, 0.2), f.numel())

    return Probe("counting dense latents", measure)
