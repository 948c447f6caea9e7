"""Counts the images of the statistics again, side by side: with other taus, image by image, and what changed.

Statistics have sums over the images of a class with one tau. Groups with another tau, and intervals over images, need
more; it is counted for the latents of a class that can be in a group, its candidates.

Shapes: B images of T tokens, d channels, S latents, M candidates of a class, of which the first R are resampled; r the
rank of the span.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.saes.encode import LatentEncoder
from patchsae.pipeline.saes.sparse.latents import DenseLatents, Latents, SparseLatents
from patchsae.storage.scratch import ScratchArrays

CHANGES = ("change", "left_over", "reconstructed", "in_span", "size")
"""Sums over tokens of |D|^2, |D - D_hat|^2, |D_hat|^2, |P D|^2 and |x|^2, with D = x' - x, D_hat = x_hat' - x_hat for a
token x before and x' after adaptation, and P the projection on the span of the decoder."""


def counts_above(latents: Latents, images: int, tau: float) -> Tensor:
    """The number of tokens of each image on which each latent is above tau: int32 [B, S]."""
    if isinstance(latents, DenseLatents):
        value = latents.value.view(images, -1, latents.value.shape[1])
        return (value > tau).sum(dim=1, dtype=torch.int32)
    assert isinstance(latents, SparseLatents)
    above = latents.value > tau
    image = latents.token()[above] // (latents.n_tokens // images)
    cell = image * latents.n_latents + latents.latent[above].long()
    return torch.bincount(cell, minlength=images * latents.n_latents).view(images, -1).int()


def span_of(W_dec: Tensor) -> Tensor:
    """An orthonormal basis of the span of decoder rows [n, d]: float32 [d, r]. Directions below float32's rounding of
    the largest one are left out."""
    if not len(W_dec):
        return W_dec.new_zeros(W_dec.shape[1], 0)
    unit = torch.nn.functional.normalize(W_dec.double(), dim=1)
    values, vectors = torch.linalg.eigh(unit.T @ unit)
    return vectors[:, values > values[-1] * 1e-10].float().contiguous()


@dataclass
class ClassSums:
    """What is counted of the images of one class in a part."""

    above: np.ndarray  # [taus, 2, M] int64
    images: list[np.ndarray]  # each [2, R] uint16: tokens of one image above the statistics' tau
    changes: np.ndarray  # [5] float64


class Counting:
    """Counts the blocks of a part. The images of a class must be consecutive."""

    def __init__(
        self,
        encoder: LatentEncoder,
        candidates: Mapping[int, np.ndarray],
        n_resampled: int,
        tau: float,
        taus: Sequence[float],
        span: Tensor,
    ) -> None:
        """`candidates`: class -> its latents [M]. `span` as `span_of` makes it."""
        self.encoder, self.candidates, self.n_resampled = encoder, candidates, n_resampled
        self.tau, self.taus, self.span = tau, taus, span
        self.found: dict[int, ClassSums] = {}

    @torch.inference_mode()
    def add(self, before: Tensor, after: Tensor, labels: np.ndarray) -> None:
        """`before` [B, T, d]; `after` [B, T', d], of the same images; `labels` [B]."""
        sae = self.encoder.sae
        x_hat, above, own = [], [], []
        for x in (before, after):
            latents = self.encoder.block(x.flatten(0, 1))
            x_hat.append((latents.decode(latents.value, sae.W_dec) + sae.b_dec).view_as(x))
            own.append(counts_above(latents, len(x), self.tau).cpu().numpy())
            above.append([counts_above(latents, len(x), tau).cpu().numpy() for tau in self.taus])
        changes = None
        if before.shape == after.shape:
            changed, followed = after - before, x_hat[1] - x_hat[0]
            squares = (changed, changed - followed, followed, changed @ self.span, before)
            changes = torch.stack([one.double().square().sum(dim=(1, 2)) for one in squares]).cpu().numpy()
        for i, label in enumerate(labels.tolist()):
            latents_of = self.candidates[label]
            sums = self.found.setdefault(
                label,
                ClassSums(
                    np.zeros((len(self.taus), 2, len(latents_of)), np.int64), [], np.zeros(len(CHANGES))
                ),
            )
            for t in range(len(self.taus)):
                for side in range(2):
                    sums.above[t, side] += above[side][t][i, latents_of]
            chosen = latents_of[: self.n_resampled]
            if len(chosen):
                sums.images.append(np.stack([own[side][i, chosen] for side in range(2)]).astype(np.uint16))
            sums.changes += np.nan if changes is None else changes[:, i]

    def arrays(self) -> dict[str, np.ndarray]:
        """Flat arrays by name, of the classes `label` in ascending order."""
        labels = sorted(self.found)
        sums = [self.found[label] for label in labels]
        above = np.concatenate([one.above.reshape(-1) for one in sums]) if sums else np.zeros(0, np.int64)
        images = [image.reshape(-1) for one in sums for image in one.images]
        return {
            "label": np.array(labels, np.int64),
            "n_images": np.array([len(one.images) for one in sums], np.int64),
            "above": above.astype(np.min_scalar_type(int(above.max(initial=0)))),
            "images": np.concatenate(images) if images else np.zeros(0, np.uint16),
            "changes": np.stack([one.changes for one in sums]) if sums else np.zeros((0, len(CHANGES))),
        }


def of_classes(
    parts: Sequence[ScratchArrays],
    sizes: Mapping[int, tuple[int, int]],
    n_taus: int,
) -> dict[int, ClassSums]:
    """The sums over all parts, in the order of their numbers. `sizes`: class -> (M, R)."""
    found: dict[int, ClassSums] = {}
    for arrays in parts:
        above, images = arrays["above"], arrays["images"]
        at_above = at_images = 0
        for label, n, changes in zip(
            arrays["label"].tolist(), arrays["n_images"].tolist(), arrays["changes"], strict=True
        ):
            m, r = sizes[label]
            shape = (n_taus, 2, m)
            mine = above[at_above : (at_above := at_above + n_taus * 2 * m)].reshape(shape).astype(np.int64)
            own = images[at_images : (at_images := at_images + n * 2 * r)].reshape(n, 2, r)
            if label not in found:
                found[label] = ClassSums(np.zeros(shape, np.int64), [], np.zeros(len(CHANGES)))
            found[label].above += mine
            found[label].images.extend(own)
            found[label].changes += changes
    return found
