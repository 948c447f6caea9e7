"""Latents of a block of tokens in the products a training step needs, dense or sparse, whichever costs less.

Both kinds give the same numbers up to the order of summation.

Shapes: n tokens of a block, d channels, S latents, nnz entries above 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.latents import SparseLatents, decode, tokens_per_block, weighted_sums

# Above this share of positive entries the dense products are faster; measured at d = 128 and 768.
MAX_DENSITY = 0.2
_PROBE_TOKENS = 64
# Of one part of a product: 4 MB, but never so few tokens that it is slow.
_CACHED_ELEMENTS = 1 << 20
_LEAST_ROWS = 256

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


class Codes(Protocol):
    """`values` are f at the positive entries; every method takes values of that layout."""

    values: Tensor

    def decode(self, W: Tensor) -> Tensor:
        """`f W`: [n, d] for W [S, d]."""
        ...

    def backward(self, d_x_hat: Tensor, W: Tensor, slope: float) -> Tensor:
        """The loss's gradient by h, `d_x_hat W^T + slope` at the positive entries, for W [S, d]."""
        ...

    def transposed_product(self, values: Tensor, A: Tensor) -> Tensor:
        """`values^T A`: [S, d] for A [n, d]."""
        ...

    def per_latent(self, values: Tensor) -> Tensor:
        """Sum over tokens: [S]."""
        ...


class DenseCodes:
    """All entries: `values` is [n, S], 0 where a latent does not fire."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def decode(self, W: Tensor) -> Tensor:
        return self.values @ W

    def backward(self, d_x_hat: Tensor, W: Tensor, slope: float) -> Tensor:
        return (d_x_hat @ W.T).add_(slope).mul_(self.values > 0)

    def transposed_product(self, values: Tensor, A: Tensor) -> Tensor:
        return values.T @ A

    def per_latent(self, values: Tensor) -> Tensor:
        return values.sum(dim=0)


class SparseCodes:
    """The positive entries alone: `values` is [nnz], row by row."""

    def __init__(self, latents: SparseLatents) -> None:
        self.latents = latents
        self.values = latents.value

    def decode(self, W: Tensor) -> Tensor:
        return decode(self.latents, W)

    def backward(self, d_x_hat: Tensor, W: Tensor, slope: float) -> Tensor:
        pattern = torch.sparse_csr_tensor(
            self.latents.offsets.int(),
            self.latents.latent,
            self.values,
            (self.latents.n_tokens, self.latents.n_latents),
            check_invariants=False,
        )
        return torch.sparse.sampled_addmm(pattern, d_x_hat, W.T, beta=0.0).values().add_(slope)

    @cached_property
    def _by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        """The entries latent by latent: their order, their tokens, and where each latent's begin."""
        n_latents = self.latents.n_latents
        latent = self.latents.latent.numpy()
        # NumPy sorts 16-bit integers by radix, ten times faster.
        order = torch.from_numpy(
            np.argsort(latent.astype(np.uint16) if n_latents <= 1 << 16 else latent, kind="stable")
        )
        ends = torch.bincount(self.latents.latent, minlength=n_latents).cumsum(0)
        starts = torch.nn.functional.pad(ends[:-1], (1, 0))
        return order, self.latents.token().index_select(0, order).int(), starts

    def transposed_product(self, values: Tensor, A: Tensor) -> Tensor:
        order, token, starts = self._by_latent
        return weighted_sums(token, values.index_select(0, order), starts, A)

    def per_latent(self, values: Tensor) -> Tensor:
        # Of nothing, `bincount` makes integers.
        return torch.bincount(self.latents.latent, values, self.latents.n_latents).to(values.dtype)


def encode_blocks(
    x: Tensor, encoder: Tensor, b_enc: Tensor, max_density: float = MAX_DENSITY
) -> Iterator[tuple[slice, Codes]]:
    """`relu(x encoder^T + b_enc)` for x [n, d] and encoder [S, d], block by block of tokens.

    A block is dense if more than `max_density` of its first tokens' entries are positive, and always on an
    accelerator.
    """
    # The bias as one more channel: added otherwise, it costs as much as half the product.
    x, encoder = (
        torch.nn.functional.pad(x, (0, 1), value=1.0),
        torch.cat([encoder, b_enc.unsqueeze(1)], dim=1),
    )
    n_rows = tokens_per_block(len(encoder))
    for start in range(0, len(x), n_rows):
        rows = slice(start, min(start + n_rows, len(x)))
        probe = x[rows][:_PROBE_TOKENS] @ encoder.T > 0
        if x.device.type != "cpu" or torch.count_nonzero(probe) > max_density * probe.numel():
            yield rows, DenseCodes((x[rows] @ encoder.T).relu_())
        else:
            yield rows, SparseCodes(_encode_sparse(x[rows], encoder))


def _encode_sparse(x: Tensor, encoder: Tensor) -> SparseLatents:
    """The positive entries of `x encoder^T`, found while a part of the product is still in the cache."""
    n_latents = len(encoder)
    n_rows = max(_LEAST_ROWS, _CACHED_ELEMENTS // n_latents)
    buffer = x.new_empty(min(n_rows, len(x)), n_latents)
    places, values = [], []
    for start in range(0, len(x), n_rows):
        part = x[start : start + n_rows]
        h = torch.mm(part, encoder.T, out=buffer[: len(part)])
        # Seven times faster than torch.nonzero.
        place = torch.from_numpy(np.flatnonzero((h > 0).numpy()))
        values.append(h.view(-1).index_select(0, place))
        places.append(place + start * n_latents)
    place = torch.cat(places)
    token = place // n_latents
    offsets = torch.zeros(len(x) + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(token, minlength=len(x)), 0, out=offsets[1:])
    return SparseLatents(offsets, (place - token * n_latents).int(), torch.cat(values), n_latents)
