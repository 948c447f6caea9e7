"""Triton kernels for sparse latents on CUDA: finding entries, products, decoding, gradients of weights.

`pipeline.saes.sparse.products` and `pipeline.saes.sparse.encoder` call them; the plain torch versions there
are the oracle in tests. Sums run in a fixed order, so the same input gives the same bytes on the same card.
The module is imported only where there is CUDA, and there Triton comes with torch.

Shapes: n tokens, d channels, S latents, nnz entries, G groups of entries.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

_COLUMNS = 1024
_ENTRIES = 16
# The largest value that `sparse_below` returns.
_MAX_DENSITY = 0.2


@triton.jit
def _count_kernel(h, bound, counts, n_columns, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    least = tl.load(bound + row)
    found = tl.zeros([COLUMNS], dtype=tl.int32)
    for first in range(0, n_columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = column < n_columns
        value = tl.load(h + row * n_columns + column, mask=inside, other=0.0).to(tl.float32)
        found += ((value >= least) & inside).to(tl.int32)
    tl.store(counts + row, tl.sum(found, axis=0).to(tl.int64))


@triton.jit
def _compact_kernel(h, bound, offsets, places, n_columns, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    least = tl.load(bound + row)
    position = tl.load(offsets + row)
    for first in range(0, n_columns, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        inside = column < n_columns
        value = tl.load(h + row * n_columns + column, mask=inside, other=0.0).to(tl.float32)
        kept = (value >= least) & inside
        count = kept.to(tl.int32)
        at = position + tl.cumsum(count, axis=0) - count
        tl.store(places + at, row * n_columns + column, mask=kept)
        position += tl.sum(count, axis=0).to(tl.int64)


@triton.jit
def _weighted_sums_kernel(index, value, bounds, W, out, width, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    group = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    first, last = tl.load(bounds + group), tl.load(bounds + group + 1)
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        there = entry < last
        row = tl.load(index + entry, mask=there, other=0).to(tl.int64)
        weight = tl.load(value + entry, mask=there, other=0.0)
        rows = tl.load(
            W + row[:, None] * width + column[None, :], mask=there[:, None] & inside[None, :], other=0.0
        )
        total += tl.sum(weight[:, None] * rows, axis=0)
    tl.store(out + group * width + column, total, mask=inside)


@triton.jit
def _products_kernel(A, W, latent, offsets, out, width, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    first, last = tl.load(offsets + token), tl.load(offsets + token + 1)
    for start in range(first, last, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        there = entry < last
        row = tl.load(latent + entry, mask=there, other=0).to(tl.int64)
        total = tl.zeros([ENTRIES], dtype=tl.float32)
        for left in range(0, width, COLUMNS):
            column = left + tl.arange(0, COLUMNS)
            inside = column < width
            x = tl.load(A + token * width + column, mask=inside, other=0.0).to(tl.float32)
            rows = tl.load(
                W + row[:, None] * width + column[None, :], mask=there[:, None] & inside[None, :], other=0.0
            )
            total += tl.sum(x[None, :] * rows, axis=1)
        tl.store(out + entry, total, mask=there)


def places(h: Tensor, bound: Tensor) -> Tensor:
    """Flat places of the entries of `h` [n, S] at or above `bound`, [] or [n, 1]: [nnz] int64, ascending.

    It makes two passes over `h`, one that counts and one that writes places, and stores no mask.
    """
    n, n_latents = h.shape
    h = h.contiguous()
    bound = bound.float().reshape(-1).expand(n).contiguous()
    counts = torch.empty(n, dtype=torch.int64, device=h.device)
    with torch.cuda.device_of(h):
        _count_kernel[(n,)](h, bound, counts, n_latents, COLUMNS=_COLUMNS)
        ends = counts.cumsum(0)
        found = torch.empty(int(ends[-1]), dtype=torch.int64, device=h.device)
        _compact_kernel[(n,)](h, bound, ends - counts, found, n_latents, COLUMNS=_COLUMNS)
    return found


def weighted_sums(index: Tensor, value: Tensor, bounds: Tensor, W: Tensor) -> Tensor:
    """Sum of `value * W[index]` over each group of consecutive entries: [G, d] for W [rows, d].

    Group g is entries bounds[g] to bounds[g + 1]; `bounds` [G + 1]. With a group per token it decodes; with a
    group per latent it computes the gradients of the weights, without atomic additions.
    """
    width = W.shape[1]
    out = torch.empty(len(bounds) - 1, width, dtype=torch.float32, device=W.device)
    columns = min(256, triton.next_power_of_2(width))
    grid = (len(out), triton.cdiv(width, columns))
    with torch.cuda.device_of(W):
        _weighted_sums_kernel[grid](
            index, value.contiguous(), bounds, W.contiguous(), out, width, ENTRIES=_ENTRIES, COLUMNS=columns
        )
    return out


def products(A: Tensor, W: Tensor, latent: Tensor, offsets: Tensor) -> Tensor:
    """`A[token] . W[latent]` at each entry: [nnz] float32 for A [n, d], W [S, d]."""
    width = A.shape[1]
    out = torch.empty(len(latent), dtype=torch.float32, device=A.device)
    columns = min(256, triton.next_power_of_2(width))
    with torch.cuda.device_of(A):
        _products_kernel[(len(A),)](
            A.contiguous(), W.contiguous(), latent, offsets, out, width, ENTRIES=_ENTRIES, COLUMNS=columns
        )
    return out


@cache
def usable(device: str) -> bool:
    """Whether the kernels compile for a device and agree with torch. Warns if not."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(33, 1030, generator=generator).to(device)
    W = torch.randn(1030, 72, generator=generator).to(device)
    x = torch.randn(33, 72, generator=generator).to(device)
    try:
        kept = h >= 1.0
        found = places(h, h.new_tensor(1.0))
        right = torch.equal(found, kept.view(-1).nonzero().squeeze(1))
        if right:
            bounds = torch.nn.functional.pad(kept.sum(dim=1).cumsum(0), (1, 0))
            latent = (found % len(W)).int()
            expected = [(h * kept) @ W, (x @ W.T).view(-1)[found]]
            got = [weighted_sums(latent, h.view(-1)[found], bounds, W), products(x, W, latent, bounds)]
            # The tolerances allow for products in TF32.
            right = all(torch.allclose(a, b, rtol=1e-2, atol=0.1) for a, b in zip(got, expected, strict=True))
        reason = "they give other numbers than torch"
    except (TritonError, RuntimeError, OSError) as error:
        right, reason = False, str(error)
    if not right:
        warnings.warn(f"Triton kernels are not used on {device}: {reason}", stacklevel=2)
    return right


@cache
def sparse_below(device: str, width: int, n_latents: int) -> float:
    """The density below which these kernels are faster than dense bfloat16 products; 0 if not usable.

    It is measured once per process at one density: the time of the kernels is proportional to the density,
    and that of dense products does not depend on it.
    """
    if not usable(device):
        return 0.0
    n, per_token = 2048, max(1, n_latents // 256)
    latent = torch.randint(n_latents, (n * per_token,), dtype=torch.int32, device=device)
    value = torch.rand(n * per_token, device=device)
    bounds = torch.arange(0, n * per_token + 1, per_token, device=device)
    W = torch.randn(n_latents, width, device=device)
    codes, rows = torch.rand(n, n_latents, device=device).bfloat16(), W.bfloat16()
    t_dense = triton.testing.do_bench(lambda: codes @ rows)
    t_sparse = triton.testing.do_bench(lambda: weighted_sums(latent, value, bounds, W))
    return min(_MAX_DENSITY, per_token / n_latents * t_dense / t_sparse)
