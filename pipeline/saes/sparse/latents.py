"""The latents of a block of tokens, sparse or dense, with the products that training and evaluations need.

An entry is a (token, latent) pair that may be above 0. In float32 both kinds give the same numbers up to the
order of summation. No array of tokens x all latents outlives a block, and none is larger than 200 MB.

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

from patchsae.pipeline.core.interrupts import leave_if_asked
from patchsae.pipeline.saes.sparse import products

# Dense elements at a time: 200 MB in float32. At least so many tokens that the product is not slow (1.5 million
# latents reach this), and at most so many that the block of a small SAE still fits into the processor's cache.
_DENSE_ELEMENTS = 50_000_000
_TOKENS_PER_BLOCK = (32, 8192)
# Elements of one part of a transposed product: 2 MB in float32.
_CACHED_ELEMENTS = 1 << 19
_TOKENS_AT_ONCE = 16


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

    @property
    def n_tokens(self) -> int: ...

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

    def n_tokens_on(self) -> Tensor:
        """The number of tokens on which each latent is above 0: [S] int64."""
        ...

    def sparse(self) -> SparseLatents:
        """Only the entries above 0."""
        ...


class Converted:
    """Tensors in `dtype`, each converted once: the weights, which all blocks of a batch are multiplied with."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._found: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.dtype == self.dtype:
            return tensor
        # The tensor is kept too, so that its id is not given to another one.
        return self._found.setdefault(id(tensor), (tensor, tensor.to(self.dtype)))[1]


class DenseLatents:
    """All pairs: `value` is [n, S]. Entries are where it is above 0; values in this layout are 0 elsewhere.

    Products are computed in the precision of `value`. Those at the entries stay in it, the others are float32.
    `weights` converts what does not change from block to block.
    """

    def __init__(self, value: Tensor, weights: Converted | None = None) -> None:
        self.value = value
        self._weights = weights or Converted(value.dtype)

    @property
    def n_tokens(self) -> int:
        return len(self.value)

    def spread(self, vector: Tensor) -> Tensor:
        return zero_where_off_(vector.expand(self.value.shape).contiguous(), self.value)

    def decode(self, value: Tensor, W: Tensor) -> Tensor:
        leave_if_asked()
        return (value.to(self.value.dtype) @ self._weights(W)).float()

    def products(self, A: Tensor, W: Tensor) -> Tensor:
        leave_if_asked()
        return zero_where_off_(A.to(self.value.dtype) @ self._weights(W).T, self.value)

    def transposed_product(self, value: Tensor, A: Tensor, out: Tensor, accumulate: bool = False) -> Tensor:
        leave_if_asked()
        value, A = value.to(self.value.dtype), A.to(self.value.dtype)
        if value.dtype == out.dtype:
            return out.addmm_(value.T, A) if accumulate else torch.mm(value.T, A, out=out)
        found = value.T @ A
        return out.add_(found) if accumulate else out.copy_(found)

    def per_latent(self, value: Tensor) -> Tensor:
        if value.dtype == torch.float32:
            return value.sum(dim=0)
        # Some tokens at a time, because torch copies what it sums to float32 first.
        found = value.new_zeros(value.shape[1], dtype=torch.float32)
        for some in value.split(_TOKENS_AT_ONCE):
            found += some.sum(dim=0, dtype=torch.float32)
        return found

    def n_tokens_on(self) -> Tensor:
        on = self.value > 0
        if on.device.type != "cpu":
            return on.sum(dim=0)
        # Sums of bytes are the fastest ones, and a byte holds a sum of 255 tokens.
        counts = np.zeros(on.shape[1], np.int64)
        for some in on.view(torch.uint8).split(255):
            counts += some.numpy().sum(axis=0, dtype=np.uint8)
        return torch.from_numpy(counts)

    def sparse(self) -> SparseLatents:
        place = places(self.value > 0)
        return at_places(place, self.value.view(-1)[place].float(), *self.value.shape)


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
        leave_if_asked()
        return products.weighted_sums(self.latent, value, self.offsets, W)

    def products(self, A: Tensor, W: Tensor) -> Tensor:
        leave_if_asked()
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
        leave_if_asked()
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

    def n_tokens_on(self) -> Tensor:
        return torch.bincount(self.latent[self.value > 0], minlength=self.n_latents)

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


def zero_where_off_(values: Tensor, f: Tensor) -> Tensor:
    """Sets `values` to 0, in place, where the latents `f` of the same shape are not above 0."""
    if values.dtype != f.dtype:
        return values.mul_(f > 0)
    # The gradient of a ReLU: sixteen times as fast as with a mask, which torch first turns into numbers.
    kept: Tensor = torch.ops.aten.threshold_backward.grad_input(values, f, 0, grad_input=values)
    return kept


def n_positive(values: Tensor) -> int:
    """The number of elements above 0."""
    on = values > 0
    if on.device.type == "cpu":
        # Four times faster than torch.count_nonzero.
        return int(np.count_nonzero(on.numpy()))
    return int(torch.count_nonzero(on))


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
