"""Zero-shot classification with all activations at the hook replaced: by the SAE's, by their mean, by zeros.

Shapes: B images of T tokens, d channels, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from pipeline.backbones.base import Backbone

REPLACED = ("original", "reconstruction", "mean", "zero")


@dataclass(frozen=True)
class ZeroshotLogits:
    """Image-text logits from activations at the hook."""

    backbone: Backbone
    weights: Tensor  # [C, E], a row per class name
    logit_scale: float

    def __call__(self, activations: Tensor) -> Tensor:
        """[B, T, d] -> [B, C]."""
        features = normalize(self.backbone.tail(activations), dim=-1)
        return self.logit_scale * features @ self.weights.T


class Outcomes:
    """Correct images and summed cross entropy of each way in `REPLACED`."""

    def __init__(self) -> None:
        self.n_correct = np.zeros(len(REPLACED), np.int64)
        self.cross_entropy = np.zeros(len(REPLACED))

    @torch.inference_mode()
    def add(self, logits: ZeroshotLogits, x: Tensor, x_hat: Tensor, mean: Tensor, labels: Tensor) -> None:
        """Adds images: `x` and `x_hat` [B, T, d], `mean` [d], `labels` [B] int64."""
        ways = (x, x_hat, mean.expand_as(x).contiguous(), torch.zeros_like(x))
        for i, replaced in enumerate(ways):
            found = logits(replaced)
            self.n_correct[i] += int((found.argmax(dim=1) == labels).sum())
            self.cross_entropy[i] += cross_entropy(found.double(), labels, reduction="sum").item()


def kept(value: float, original: float, ablated: float) -> float | None:
    """`(value - ablated) / (original - ablated)`: 1 is as good as the original, 0 as bad as the ablation.

    None where there is nothing to keep.
    """
    return None if original == ablated else (value - ablated) / (original - ablated)
