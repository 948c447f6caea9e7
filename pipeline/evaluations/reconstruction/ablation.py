"""Zero-shot classification with all activations at the hook replaced, for the evaluation `reconstruction`.

Shapes: B images of T tokens, d channels, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from patchsae.pipeline.classification.zero_shot import ZeroShot
from patchsae.storage.scratch import ScratchArrays

REPLACED = ("original", "reconstruction", "mean", "zero")


class Outcomes:
    """The number of correct images and the summed cross entropy, for each replacement in `REPLACED`."""

    def __init__(self) -> None:
        self.n_correct = np.zeros(len(REPLACED), np.int64)
        self.cross_entropy = np.zeros(len(REPLACED))

    @torch.inference_mode()
    def add(self, zero_shot: ZeroShot, x: Tensor, x_hat: Tensor, mean: Tensor, labels: Tensor) -> None:
        """Adds a block of images: `x` and `x_hat` [B, T, d], `mean` [d], `labels` [B] int64."""
        ways = (x, x_hat, mean.expand_as(x).contiguous(), torch.zeros_like(x))
        for i, replaced in enumerate(ways):
            found = zero_shot.logits(replaced)
            self.n_correct[i] += int((found.argmax(dim=1) == labels).sum())
            self.cross_entropy[i] += cross_entropy(found.double(), labels, reduction="sum").item()

    def merge(self, arrays: ScratchArrays) -> None:
        """Adds the sums over the images of another part."""
        for name, values in vars(self).items():
            values += arrays[name]


def kept(value: float, original: float, ablated: float) -> float | None:
    """`(value - ablated) / (original - ablated)`: 1 is as good as the original, 0 as bad as the ablation.

    None if original and ablated are equal.
    """
    return None if original == ablated else (value - ablated) / (original - ablated)
