"""Zero-shot classification with the activations at the hook replaced, for the evaluation `reconstruction`.

Shapes: B images of T tokens, of which R are replaced; d channels, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.classification.zero_shot import ZeroShot, all_on_top
from patchsae.storage.scratch import ScratchArrays

REPLACED = ("original", "reconstruction", "mean", "zero")


class Outcomes:
    """Numbers of correct images, and sums of entropies over images, for each replacement in `REPLACED`."""

    def __init__(self) -> None:
        self.n_correct = np.zeros(len(REPLACED), np.int64)
        self.n_sets_correct = np.zeros(len(REPLACED), np.int64)
        self.cross_entropy = np.zeros(len(REPLACED))
        self.kl_to_original = np.zeros(len(REPLACED))

    @torch.inference_mode()
    def add(
        self, zero_shot: ZeroShot, x: Tensor, x_hat: Tensor, mean: Tensor, label_sets: Tensor, tokens: range
    ) -> None:
        """Adds a block of images.

        `x` [B, T, d], `x_hat` [B, R, d], `mean` [d], `label_sets` [B, C] bool; `tokens` are the R that are replaced.
        """
        before, after = x[:, : tokens.start], x[:, tokens.stop :]
        by = (x_hat, mean.expand_as(x_hat), torch.zeros_like(x_hat))
        ways = (x, *(torch.cat([before, values, after], dim=1) for values in by))
        # The cross entropy is that of a distribution which gives every class of an image the same share.
        target = label_sets.double() / label_sets.sum(dim=1, keepdim=True)
        original = None
        for i, replaced in enumerate(ways):
            found = zero_shot.logits(replaced)
            log_p = found.double().log_softmax(dim=1)
            original = log_p if original is None else original
            self.n_correct[i] += int(label_sets.gather(1, found.argmax(dim=1, keepdim=True)).sum())
            self.n_sets_correct[i] += int(all_on_top(found, label_sets).sum())
            self.cross_entropy[i] -= (target * log_p).sum().item()
            self.kl_to_original[i] += (original.exp() * (original - log_p)).sum().item()

    def merge(self, arrays: ScratchArrays) -> None:
        """Adds the sums over the images of another part."""
        for name, values in vars(self).items():
            values += arrays[name]


def kept(value: float, original: float, ablated: float) -> float | None:
    """`(value - ablated) / (original - ablated)`: 1 is as good as the original, 0 as bad as the ablation.

    More of each is better. None if the original is not better than the ablation, as a random backbone on few images
    may be: then there is nothing to keep.
    """
    return (value - ablated) / (original - ablated) if original > ablated else None
