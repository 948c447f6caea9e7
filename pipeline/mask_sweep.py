"""All top-k masks of one ranking in one sweep, from cached activations (spec 12.2).

With R_k the sum over the top k latents of f_s W_dec[s], keeping only those gives b_dec + R_k and dropping only those
x_hat - R_k. The sets are nested, so each latent is decoded once however many k there are.

Shapes: B images of T tokens, of which R are replaced; d channels, S latents, C classes, K ranked latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.backbones.base import Backbone
from pipeline.latents import SparseLatents, decode, weighted_sums
from pipeline.rankings import segments
from pipeline.saes.base import Sae


def sweep(
    latents: SparseLatents, images: int, ranking: Tensor, ks: np.ndarray, W_dec: Tensor
) -> Iterator[Tensor]:
    """R_k for each of the ascending `ks`: [B R, d] each; one tensor, changed in place between steps.

    `ranking`: [B, K] int64, the ranked latents of every image, K at least the largest k; or [1, K] for all.
    """
    step_of_rank = torch.from_numpy(segments(ks)).to(ranking.device)
    step_of_latent = torch.full(
        (len(ranking), latents.n_latents), len(ks), dtype=torch.int16, device=ranking.device
    )
    step_of_latent.scatter_(1, ranking[:, : len(step_of_rank)], step_of_rank.expand(len(ranking), -1))
    token = latents.token()
    row = token // (latents.n_tokens // images) if len(ranking) > 1 else torch.zeros_like(token)
    step = step_of_latent[row, latents.latent.long()]
    total = torch.zeros(latents.n_tokens, W_dec.shape[1], device=W_dec.device)
    for i in range(len(ks)):
        chosen = (step == i).nonzero().squeeze(1)
        ends = torch.bincount(token[chosen], minlength=latents.n_tokens).cumsum(0)
        starts = torch.nn.functional.pad(ends[:-1], (1, 0))
        total += weighted_sums(latents.latent[chosen], latents.value[chosen], starts, W_dec)
        yield total


@dataclass(frozen=True)
class Zeroshot:
    """Classifies activations at the hook."""

    backbone: Backbone
    weights: Tensor  # [C, E]

    def predict(self, activations: Tensor) -> Tensor:
        """[B, T, d] -> class ids [B]. The logit scale is left out: it is positive."""
        features = normalize(self.backbone.tail(activations), dim=-1)
        return (features @ self.weights.T).argmax(dim=-1)


@dataclass
class Correct:
    """Correctly classified images of every class, for each way of replacing activations."""

    original: np.ndarray  # [C]
    reconstruction: np.ndarray  # [C]: all latents on
    bias: np.ndarray  # [C]: all latents off
    masked: np.ndarray  # [rankings, 2 (on, off), ks, C]

    @classmethod
    def zeros(cls, n_rankings: int, n_ks: int, n_classes: int) -> Correct:
        shapes = [(n_classes,)] * 3 + [(n_rankings, 2, n_ks, n_classes)]
        return cls(*(np.zeros(shape, np.int64) for shape in shapes))

    def arrays(self) -> dict[str, np.ndarray]:
        return vars(self)

    def add(self, other: Correct) -> None:
        for name, values in vars(self).items():
            values += getattr(other, name)


@torch.inference_mode()
def count_correct(
    correct: Correct,
    x: Tensor,
    latents: SparseLatents,
    labels: np.ndarray,
    rankings: list[Tensor],
    ks: np.ndarray,
    sae: Sae,
    zeroshot: Zeroshot,
    modes: tuple[str, ...],
) -> None:
    """Adds one block of images to `correct`.

    `x` [B, T, d]; `latents`: those of its last R tokens, which are replaced; `labels` [B]; `rankings`: as in
    `sweep`, one per selection; `ks` ascending.
    """
    kept = x.shape[1] - latents.n_tokens // len(x)
    n_classes = len(correct.original)

    def count(into: np.ndarray, replaced: Tensor | None) -> None:
        full = x
        if replaced is not None:
            full = torch.cat([x[:, :kept], replaced.view(len(x), -1, x.shape[2])], dim=1)
        is_right = zeroshot.predict(full).cpu().numpy() == labels
        into += np.bincount(labels[is_right], minlength=n_classes)

    x_hat = decode(latents, sae.W_dec) + sae.b_dec
    count(correct.original, None)
    count(correct.reconstruction, x_hat)
    count(correct.bias, sae.b_dec.expand_as(x_hat).contiguous())
    for ranking, into in zip(rankings, correct.masked, strict=True):
        for i, R_k in enumerate(sweep(latents, len(x), ranking, ks, sae.W_dec)):
            if "on" in modes:
                count(into[0, i], sae.b_dec + R_k)
            if "off" in modes:
                count(into[1, i], x_hat - R_k)
