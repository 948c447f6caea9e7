"""The latents of a block of tokens, sparse or dense, with the products that training and evaluations need.

An entry is a (token, latent) pair that may be above 0. In float32 both kinds give the same numbers up to the
order of summation. No array of tokens x all latents outlives a block.

Shapes: n tokens, d channels, S latents, nnz entries.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.saes.sparse import products

# Dense elements at a time: 200 MB in float32. At least so many tokens that the product is not slow, and at
# most so many that the block of a small SAE still fits into the processor's cache.
_DENSE_ELEMENTS = 50_000_000
_TOKENS_PER_BLOCK = (256, 8192)
# Elements of one part of a transposed product: 2 MB in float32.
_CACHED_ELEMENTS = 1 << 19


def tokens_per_block(n_latents: int) -> int:
    """How many tokens are encoded at once."""
    least, most = _TOKENS_PER_BLOCK
    return max(least, min(most, _DENSE_ELEMENTS // n_latents))


def images_per_block(n_latents: int, tokens_per_image: int) -> int:
    """How many whole images make a block, at least one."""
    return max(1, tokens_per_block(n_latents) // tokens_per_image)


class Latents(Protocol):
    """The latents of a block of tokens.

    Methods take and return values in the layout of `value`: one per entry.
    """

    @property
    def value(self) -> Tensor: ...

    def spread(self, vector: Tensor) -> Tensor:
        """`vector` [S], a number per latent, repeated at each latent's entries."""
        ...

    def decode(self, value: Tensor, W: Tensor) -> Tensor:
        """`value W`: [n, d] for W [S, d]."""
        ...

    def products(self, A: Tensor, W: Tensor) -> Tensor:
        """`A W^T` at the entries, for A [n, d] and W [S, d]."""
        ...

    def transposed_product(self, value: Tensor, A: Tensor, out: Tensor, accumulate: bool = False) -> Tensor:
        """`value^T A` for A [n, d], written into `out` [S, d], or added to it with `accumulate`.

        Returns `out`.
        """
        ...

    def per_latent(self, value: Tensor) -> Tensor:
        """The sum of `value` over tokens: [S]."""
        ...

    def sparse(self) -> SparseLatents:
        """Only the entries above 0."""
        ...


class DenseLatents:
    """All pairs: `value` is [n, S]. Entries are where it is above 0; values in this layout are 0 elsewhere.

    Products are computed in `dtype`.
    """

    def __init__(self, value: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.value = value
        self._dtype = dtype

    @cached_property
    def _active(self) -> Tensor:
        return self.value > 0

    def _product(self, A: Tensor, B: Tensor) -> Tensor:
        return (A.to(self._dtype) @ B.to(self._dtype)).float()

    def spread(self, vector: Tensor) -> Tensor:
        return vector * self._active

    def decode(self, value: Tensor, W: Tensor) -> Tensor:
        return self._product(value, W)

    def products(self, A: Tensor, W: Tensor) -> Tensor:
        return self._product(A, W.T).mul_(self._active)

    def transposed_product(self, value: Tensor, A: Tensor, out: Tensor, accumulate: bool = False) -> Tensor:
        found = self._product(value.T, A)
        return out.add_(found) if accumulate else out.copy_(found)

    def per_latent(self, value: Tensor) -> Tensor:
        return value.sum(dim=0)

    def sparse(self) -> SparseLatents:
        place = places(self._active)
        return at_places(place, self.value.view(-1)[place], *self.value.shape)


@dataclass(frozen=True)
class SparseLatents:
    """Only the entries, as compressed sparse rows: token by token, and latents ascending within a token."""

    offsets: Tensor  # [n + 1] int64: token i has entries offsets[i] to offsets[i + 1]
    latent: Tensor  # [nnz] int32
    value: Tensor  # [nnz] float32
    n_latents: int

    @property
    def n_tokens(self) -> int:
        return len(self.offsets) - 1

    def token(self) -> Tensor:
        """The token of every entry: [nnz] int64."""
        tokens = torch.arange(self.n_tokens, device=self.offsets.device)
        return torch.repeat_interleave(tokens, self.offsets.diff(), output_size=len(self.latent))

    def spread(self, vector: Tensor) -> Tensor:
        return vector.index_select(0, self.latent)

    def decode(self, value: Tensor, W: Tensor) -> Tensor:
        return products.weighted_sums(self.latent, value, self.offsets, W)

    def products(self, A: Tensor, W: Tensor) -> Tensor:
        return products.products(A, W, self.latent, self.offsets)

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The entries by latent: their order [nnz], their tokens [nnz], and each latent's bounds [S + 1]."""
        if self.latent.device.type == "cpu":
            # NumPy has a radix sort for 16-bit integers, which is ten times faster.
            latent = self.latent.numpy()
            key = latent.astype(np.uint16) if self.n_latents <= 1 << 16 else latent
            order = torch.from_numpy(np.argsort(key, kind="stable"))
        else:
            order = self.latent.argsort(stable=True)
        ends = torch.bincount(self.latent, minlength=self.n_latents).cumsum(0)
        bounds = torch.nn.functional.pad(ends, (1, 0))
        return order, self.token().index_select(0, order).int(), bounds

    def transposed_product(self, value: Tensor, A: Tensor, out: Tensor, accumulate: bool = False) -> Tensor:
        order, token, bounds = self._by_latent
        value = value.index_select(0, order)
        # On a CPU, some latents at a time, so that their sums are still in the cache when `out` gets them.
        step = len(out) if out.is_cuda else max(1, _CACHED_ELEMENTS // out.shape[1])
        cuts = [*range(0, len(out), step), len(out)]
        ends = bounds[cuts].tolist()
        for (a, b), (i, j) in zip(itertools.pairwise(cuts), itertools.pairwise(ends), strict=True):
            found = products.weighted_sums(token[i:j], value[i:j], bounds[a : b + 1] - i, A)
            if accumulate:
                out[a:b] += found
            else:
                out[a:b] = found
        return out

    def per_latent(self, value: Tensor) -> Tensor:
        # `bincount` returns integers if there are no entries.
        return torch.bincount(self.latent, value, self.n_latents).to(value.dtype)

    def sparse(self) -> SparseLatents:
        return self.where(self.value > 0)

    def with_value(self, value: Tensor) -> SparseLatents:
        """The same entries with other values."""
        return SparseLatents(self.offsets, self.latent, value, self.n_latents)

    def where(self, kept: Tensor) -> SparseLatents:
        """The entries where the mask `kept` [nnz] is set; `self` if it is set everywhere."""
        if kept.all():
            return self
        ends = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
        return SparseLatents(ends[self.offsets], self.latent[kept], self.value[kept], self.n_latents)


def joined(blocks: list[SparseLatents]) -> SparseLatents:
    """The latents of several blocks of tokens as those of one block, in order."""
    if len(blocks) == 1:
        return blocks[0]
    counts = torch.cat([block.offsets.diff() for block in blocks])
    offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    latent, value = (torch.cat([getattr(block, name) for block in blocks]) for name in ("latent", "value"))
    return SparseLatents(offsets, latent, value, blocks[0].n_latents)


def places(mask: Tensor) -> Tensor:
    """The flat places where a mask [n, S] is set: [nnz] int64, ascending."""
    if mask.device.type == "cpu":
        # Seven times faster than torch.nonzero.
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.view(-1).nonzero().squeeze(1)


def at_places(place: Tensor, value: Tensor, n_tokens: int, n_latents: int) -> SparseLatents:
    """The latents whose entries are at ascending flat places in [n_tokens, n_latents]."""
    token = place // n_latents
    offsets = torch.zeros(n_tokens + 1, dtype=torch.int64, device=place.device)
    torch.cumsum(torch.bincount(token, minlength=n_tokens), 0, out=offsets[1:])
    return SparseLatents(offsets, (place - token * n_latents).int(), value, n_latents)
