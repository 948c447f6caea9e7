"""Latents of a batch in the products a training step needs: dense, or their active entries alone.

An entry is a (token, latent) pair that may be active. Both kinds give the same numbers up to the order of summation.

Shapes: n tokens, d channels, S latents, nnz entries.
"""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from functools import cache, cached_property
from types import ModuleType
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.latents import SparseLatents, weighted_sums

# Of one part of a transposed product: 2 MB.
_CACHED_ELEMENTS = 1 << 19

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """`pipeline.saes.kernels` where a tensor is on a card that runs them."""
    return _kernels_on(str(tensor.device)) if tensor.is_cuda else None


@cache
def _kernels_on(device: str) -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from pipeline.saes import kernels

    return kernels if kernels.usable(device) else None


class Codes(Protocol):
    """`values` are the numbers at the entries; every method takes and gives values of that layout."""

    values: Tensor

    def spread(self, vector: Tensor) -> Tensor:
        """A number per latent [S], at each of its entries."""
        ...

    def decode(self, values: Tensor, W: Tensor) -> Tensor:
        """`values W`: [n, d] for W [S, d]."""
        ...

    def products(self, A: Tensor, W: Tensor) -> Tensor:
        """`A W^T` at the entries, for A [n, d] and W [S, d]."""
        ...

    def transposed_product(self, values: Tensor, A: Tensor, out: Tensor, accumulate: bool = False) -> Tensor:
        """`values^T A` for A [n, d], written into `out` [S, d], or added to it; returns `out`."""
        ...

    def per_latent(self, values: Tensor) -> Tensor:
        """Sum over tokens: [S]."""
        ...


class DenseCodes:
    """All pairs: `values` is [n, S]; entries are where it is above 0, and every layout is 0 elsewhere.

    `dtype` is what the products are computed in.
    """

    def __init__(self, values: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.values = values
        self._dtype = dtype
        self._active = values > 0

    def _product(self, A: Tensor, B: Tensor) -> Tensor:
        return (A.to(self._dtype) @ B.to(self._dtype)).float()

    def spread(self, vector: Tensor) -> Tensor:
        return vector * self._active

    def decode(self, values: Tensor, W: Tensor) -> Tensor:
        return self._product(values, W)

    def products(self, A: Tensor, W: Tensor) -> Tensor:
        return self._product(A, W.T).mul_(self._active)

    def transposed_product(self, values: Tensor, A: Tensor, out: Tensor, accumulate: bool = False) -> Tensor:
        found = self._product(values.T, A)
        return out.add_(found) if accumulate else out.copy_(found)

    def per_latent(self, values: Tensor) -> Tensor:
        return values.sum(dim=0)


def _grouped_sums(index: Tensor, values: Tensor, bounds: Tensor, W: Tensor) -> Tensor:
    """Sum of `values * W[index]` over the entries between two bounds [G + 1]: [G, d] for W [rows, d]."""
    if kernels := kernels_for(W):
        found: Tensor = kernels.weighted_sums(index, values, bounds, W)
        return found
    return weighted_sums(index, values, bounds[:-1], W)


class SparseCodes:
    """The entries alone: `values` is [nnz], token by token."""

    def __init__(self, entries: SparseLatents) -> None:
        self.entries = entries
        self.values = entries.value

    def spread(self, vector: Tensor) -> Tensor:
        return vector.index_select(0, self.entries.latent)

    def decode(self, values: Tensor, W: Tensor) -> Tensor:
        return _grouped_sums(self.entries.latent, values, self.entries.offsets, W)

    def products(self, A: Tensor, W: Tensor) -> Tensor:
        if kernels := kernels_for(A):
            found: Tensor = kernels.products(A, W, self.entries.latent, self.entries.offsets)
            return found
        pattern = torch.sparse_csr_tensor(
            self.entries.offsets.int(),
            self.entries.latent,
            # Not empty: 0 times what lies there by chance may be NaN.
            A.new_zeros(len(self.values)),
            (self.entries.n_tokens, self.entries.n_latents),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(pattern, A, W.T, beta=0.0).values()

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The entries latent by latent: their order, their tokens, and [S + 1] where each latent's begin and end."""
        n_latents, latent = self.entries.n_latents, self.entries.latent
        if latent.device.type == "cpu":
            # NumPy sorts 16-bit integers by radix, ten times faster.
            key = latent.numpy().astype(np.uint16) if n_latents <= 1 << 16 else latent.numpy()
            order = torch.from_numpy(np.argsort(key, kind="stable"))
        else:
            order = latent.argsort(stable=True)
        ends = torch.bincount(latent, minlength=n_latents).cumsum(0)
        bounds = torch.nn.functional.pad(ends, (1, 0))
        return order, self.entries.token().index_select(0, order).int(), bounds

    def transposed_product(self, values: Tensor, A: Tensor, out: Tensor, accumulate: bool = False) -> Tensor:
        order, token, bounds = self._by_latent
        values = values.index_select(0, order)
        # Some latents at a time on a CPU: their sums are still in the cache when they go where they belong.
        step = len(out) if out.is_cuda else max(1, _CACHED_ELEMENTS // out.shape[1])
        cuts = [*range(0, len(out), step), len(out)]
        ends = bounds[cuts].tolist()
        for (a, b), (i, j) in zip(itertools.pairwise(cuts), itertools.pairwise(ends), strict=True):
            found = _grouped_sums(token[i:j], values[i:j], bounds[a : b + 1] - i, A)
            if accumulate:
                out[a:b] += found
            else:
                out[a:b] = found
        return out

    def per_latent(self, values: Tensor) -> Tensor:
        # Of nothing, `bincount` makes integers.
        return torch.bincount(self.entries.latent, values, self.entries.n_latents).to(values.dtype)

    def with_values(self, values: Tensor) -> SparseCodes:
        """The same entries with other numbers."""
        entries = self.entries
        return SparseCodes(SparseLatents(entries.offsets, entries.latent, values, entries.n_latents))
