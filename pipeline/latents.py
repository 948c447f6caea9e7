"""Sparse latents of cached activations, block by block: no array of tokens x latents outlives a block.

Shapes: N tokens of a block, B images of T tokens, d channels, S latents, nnz positive latents in the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from pipeline.saes.base import Sae, load_sae
from storage import tables
from storage.activations import Activations, to_float32
from storage.artifacts import Artifact

# 200 MB of dense float32 at a time, but never so few tokens that the product is slow, nor so many that a small
# SAE's block no longer fits the processor's cache.
_DENSE_ELEMENTS = 50_000_000
_TOKENS_PER_BLOCK = (256, 8192)


@dataclass(frozen=True)
class SparseLatents:
    """The positive latents of N tokens as compressed rows, columns ascending inside a row."""

    offsets: Tensor  # [N + 1] int64: row i is entries offsets[i] to offsets[i + 1]
    latent: Tensor  # [nnz] int32
    value: Tensor  # [nnz] float32
    n_latents: int

    @property
    def n_tokens(self) -> int:
        return len(self.offsets) - 1

    def token(self) -> Tensor:
        """Row of every entry: [nnz] int64."""
        rows = torch.arange(self.n_tokens, device=self.offsets.device)
        return torch.repeat_interleave(rows, self.offsets.diff(), output_size=len(self.latent))


def tokens_per_block(n_latents: int) -> int:
    """How many tokens are encoded at once."""
    least, most = _TOKENS_PER_BLOCK
    return max(least, min(most, _DENSE_ELEMENTS // n_latents))


def images_per_block(n_latents: int, tokens_per_image: int) -> int:
    """How many whole images make a block."""
    return max(1, tokens_per_block(n_latents) // tokens_per_image)


@torch.inference_mode()
def encode(sae: Sae, x: Tensor) -> SparseLatents:
    """Sparse latents of tokens [N, d], by dense blocks that are dropped at once."""
    rows = tokens_per_block(sae.n_latents)
    found = [_compress(sae.encode(x[start : start + rows])) for start in range(0, len(x), rows)]
    counts = torch.cat([count for count, _, _ in found])
    offsets = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    latent = torch.cat([latent for _, latent, _ in found])
    value = torch.cat([value for _, _, value in found])
    return SparseLatents(offsets, latent, value, sae.n_latents)


def _compress(dense: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entries per row, column and value of everything above 0 in [N, S]."""
    n_tokens, n_latents = dense.shape
    positive = dense > 0
    if dense.device.type == "cpu":
        # Seven times faster than torch.nonzero.
        flat = torch.from_numpy(np.flatnonzero(positive.numpy()))
    else:
        flat = positive.view(-1).nonzero().squeeze(1)
    row = flat // n_latents
    latent = (flat - row * n_latents).to(torch.int32)
    return torch.bincount(row, minlength=n_tokens), latent, dense.view(-1)[flat]


def decode(latents: SparseLatents, W_dec: Tensor) -> Tensor:
    """`f W_dec` without the bias: [N, d]."""
    return weighted_sums(latents.latent, latents.value, latents.offsets[:-1], W_dec)


def weighted_sums(latent: Tensor, value: Tensor, starts: Tensor, W_dec: Tensor) -> Tensor:
    """Sum of `value * W_dec[latent]` over each group of consecutive entries.

    `starts` [n]: first entry of each group; groups may be empty. Returns [n, d]. Each group is summed by one
    thread in order, so that the result does not depend on the number of threads.
    """
    return embedding_bag(latent, W_dec, starts.to(latent.dtype), mode="sum", per_sample_weights=value)


def part_ranges(activations: Activations, rows: range) -> list[range]:
    """The parts of the work on `rows` (a split): what each Zarr shard holds of it."""
    size = activations.shard_images
    shards = range(rows.start // size, -(-rows.stop // size))
    return [range(max(rows.start, s * size), min(rows.stop, (s + 1) * size)) for s in shards]


class PartImages:
    """The activations of one part, read once as they are stored, given out as float32."""

    def __init__(self, activations: Activations, rows: range, device: str, first_token: int = 0) -> None:
        self._values = activations.read(rows.start, rows.stop)
        self._start = rows.start
        self._dtype = activations.dtype
        self._device = device
        self._first_token = first_token

    def take(self, images: Sequence[int] | np.ndarray) -> Tensor:
        """Images by their row numbers: [B, T, d], without the tokens before `first_token`."""
        chosen = self._values[np.asarray(images) - self._start, self._first_token :]
        return torch.from_numpy(to_float32(chosen, self._dtype)).to(self._device)


@lru_cache(maxsize=1)
def sae_on(artifact: Artifact, device: str) -> Sae:
    """The SAE of a `train` artifact, kept for the next part of the same process."""
    return load_sae(artifact, device)


def labels_of(images: Artifact) -> np.ndarray:
    """Class id of every image of an `index` artifact: [images] int32."""
    return tables.of(images, "images").select("label").collect()["label"].to_numpy(writable=True)
