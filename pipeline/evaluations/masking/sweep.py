"""Masked reconstructions for every k, for the evaluations `masking` and `remapping`.

Let R_k be the sum over the top k latents of f_s W_dec[s] (spec 12.2). The reconstruction by these latents
alone is b_dec + R_k, and the one without them is x_hat - R_k. The top k latents contain those of every
smaller k, so each latent is decoded once, however many k there are.

Shapes: B images of T tokens, of which R are replaced; d channels, S latents, K ranked latents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.evaluations.statistics.rankings import segments
from patchsae.pipeline.saes.sparse.latents import DenseLatents, Latents, SparseLatents
from patchsae.pipeline.saes.sparse.products import weighted_sums


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
        if not len(chosen):
            yield total
            continue
        ends = torch.bincount(token[chosen], minlength=latents.n_tokens).cumsum(0)
        bounds = torch.nn.functional.pad(ends, (1, 0))
        total += weighted_sums(latents.latent[chosen], latents.value[chosen], bounds, W_dec)
        yield total
