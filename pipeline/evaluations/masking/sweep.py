"""Masked reconstructions for every k, and the images they classify correctly, for the evaluation `masking`.

Let R_k be the sum over the top k latents of f_s W_dec[s] (spec 12.2). The reconstruction by these latents
alone is b_dec + R_k, and the one without them is x_hat - R_k. The top k latents contain those of every
smaller k, so each latent is decoded once, however many k there are.

Shapes: B images of T tokens, of which R are replaced; d channels, E embedding, S latents, C classes, K ranked
latents, A readings: that of the class, and of every attribute beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.classification.zero_shot import ZeroShot, all_on_top
from patchsae.pipeline.evaluations.statistics.rankings import segments
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.latents import DenseLatents, Latents, SparseLatents
from patchsae.pipeline.saes.sparse.products import weighted_sums
from patchsae.storage.scratch import ScratchArrays


def sweep(latents: Latents, images: int, ranking: Tensor, ks: np.ndarray, W_dec: Tensor) -> Iterator[Tensor]:
    """R_k for each of the ascending `ks`: [B R, d]. It is one tensor, which is changed in place from k to k.

    `ranking` holds the ranked latents of every image, int64 [B, K], or [1, K] if they are the same for all
    images. K is the largest k or more.
    """
    if isinstance(latents, DenseLatents):
        return _dense_sweep(latents.value, ranking, ks, W_dec)
    assert isinstance(latents, SparseLatents)
    return _sparse_sweep(latents, images, ranking, ks, W_dec)


def _dense_sweep(f: Tensor, ranking: Tensor, ks: np.ndarray, W_dec: Tensor) -> Iterator[Tensor]:
    """`sweep` of dense latents f [B R, S]: only the columns of the ranked latents are multiplied."""
    total = torch.zeros(len(f), W_dec.shape[1], device=W_dec.device)
    groups = len(ranking)
    for first, last in itertools.pairwise([0, *ks.tolist()]):
        for part, of_group, latent in zip(
            f.chunk(groups), total.chunk(groups), ranking[:, first:last], strict=True
        ):
            of_group.addmm_(part.index_select(1, latent), W_dec.index_select(0, latent))
        yield total


def _sparse_sweep(
    latents: SparseLatents, images: int, ranking: Tensor, ks: np.ndarray, W_dec: Tensor
) -> Iterator[Tensor]:
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
        bounds = torch.nn.functional.pad(ends, (1, 0))
        total += weighted_sums(latents.latent[chosen], latents.value[chosen], bounds, W_dec)
        yield total


@dataclass(frozen=True)
class Reading:
    """What is read off a block of images: a classifier, and the values that it should find."""

    embeddings: Tensor  # [V, E], of V values
    label_sets: Tensor  # [B, V] bool

    def is_right(self, features: Tensor) -> np.ndarray:
        """Whether each image's values are on top: features [B, E] -> bool [B]."""
        return all_on_top(features @ self.embeddings.T, self.label_sets).cpu().numpy()


@dataclass
class Correct:
    """The number of images of every class whose class, or attribute, is read correctly, for each way of replacing
    activations."""

    original: np.ndarray  # [A, C]
    reconstruction: np.ndarray  # [A, C]: all latents on
    bias: np.ndarray  # [A, C]: all latents off
    masked: np.ndarray  # [rankings, 2 (on, off), ks, A, C]

    @classmethod
    def zeros(cls, n_rankings: int, n_ks: int, n_readings: int, n_classes: int) -> Correct:
        one = (n_readings, n_classes)
        shapes = [one] * 3 + [(n_rankings, 2, n_ks, *one)]
        return cls(*(np.zeros(shape, np.int64) for shape in shapes))

    def arrays(self) -> dict[str, np.ndarray]:
        return vars(self)

    def merge(self, arrays: ScratchArrays) -> None:
        """Adds the counts of another part."""
        for name, values in vars(self).items():
            values += arrays[name]


@torch.inference_mode()
def count_correct(
    correct: Correct,
    x: Tensor,
    latents: Latents,
    labels: np.ndarray,
    readings: Sequence[Reading],
    rankings: list[Tensor],
    ks: np.ndarray,
    sae: Sae,
    zero_shot: ZeroShot,
    modes: tuple[str, ...],
    replaced_tokens: range,
) -> None:
    """Classifies a block of images in every way and adds the counts to `correct`.

    `x` [B, T, d]. `latents` are those of the R tokens per image in `replaced_tokens`, whose activations are
    replaced. `labels` [B] are the classes that images are counted under, `readings` what is read off their
    features. `rankings` has one ranking per selection and seed, as `sweep` takes it. `ks` ascends.
    """
    first, last = replaced_tokens.start, replaced_tokens.stop
    n_classes = correct.original.shape[1]

    def count(into: np.ndarray, replaced: Tensor | None) -> None:
        full = x
        if replaced is not None:
            full = torch.cat([x[:, :first], replaced.view(len(x), -1, x.shape[2]), x[:, last:]], dim=1)
        features = zero_shot.features(full)
        for reading, counts in zip(readings, into, strict=True):
            counts += np.bincount(labels[reading.is_right(features)], minlength=n_classes)

    x_hat = latents.decode(latents.value, sae.W_dec) + sae.b_dec
    count(correct.original, None)
    count(correct.reconstruction, x_hat)
    count(correct.bias, sae.b_dec.expand_as(x_hat).contiguous())
    for ranking, into in zip(rankings, correct.masked, strict=True):
        for i, R_k in enumerate(sweep(latents, len(x), ranking, ks, sae.W_dec)):
            if "on" in modes:
                count(into[0, i], sae.b_dec + R_k)
            if "off" in modes:
                count(into[1, i], x_hat - R_k)
