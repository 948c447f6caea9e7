"""The dense product of encoding, `h = x encoder^T + bias`, of which only the entries above a bound are kept.

In bfloat16 the product only finds these entries, and float32 computes their values. bfloat16 is 2.5 times
faster than float32 on CPUs that have instructions for it, and faster still on accelerators. Training uses
`positive_latents` and `top_latents`; evaluations use the same code through `pipeline.saes.encode`.

Shapes: n tokens, d channels, S latents, nnz entries.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from patchsae.pipeline.core.interrupts import leave_if_asked
from patchsae.pipeline.saes.sparse.latents import (
    Converted,
    DenseLatents,
    Latents,
    SparseLatents,
    at_places,
    places,
    tokens_per_block,
)
from patchsae.pipeline.saes.sparse.products import kernels_for

# Above these shares of positive entries the dense products are faster on a CPU (benchmarks/LOG.md): for weights
# that stay in its cache, and for larger ones, where each entry reads a row from memory, by the precision of the
# product. They are constants, not measured on the spot: they decide in which order sums run, and the same work
# must end in the same bytes on every run.
_MAX_DENSITY = 0.2
_MAX_DENSITY_UNCACHED = {torch.float32: 0.12, torch.bfloat16: 0.06}
_CACHED_WEIGHTS = 1 << 22
_PROBE_TOKENS = 64
# The most entries that are held in memory at once; a product at so many of them takes one to two seconds.
_MAX_ENTRIES = 4_000_000
# Elements of a part of a product (4 MB in float32), and the least tokens in it, as small products are slow.
_CACHED_ELEMENTS = 1 << 20
_LEAST_ROWS = 256
# Bounds are lowered by what the k-th largest may have lost to rounding: two last places of bfloat16.
_MARGIN = 1 - 2**-6
# How far `EncoderWeights` raises h, in units of |x| |w|; more in bfloat16, as the raise itself is rounded.
_SLACK = {torch.bfloat16: 2**-7 * (1 + 2**-5), torch.float32: 2**-13}
TINY = torch.finfo(torch.float32).tiny


def max_density(device: torch.device, width: int, n_latents: int, dtype: torch.dtype) -> float:
    """The share of positive entries above which dense products are faster on a device.

    `dtype` is the precision of the product that finds the entries.

    On CUDA it is measured once per process, and it is 0 if the kernels cannot be used. It decides in which
    order sums run, so resumed work must keep the number it began with.
    """
    if device.type == "cpu":
        return _MAX_DENSITY if width * n_latents <= _CACHED_WEIGHTS else _MAX_DENSITY_UNCACHED[dtype]
    kernels = kernels_for(torch.empty(0, device=device))
    if kernels is None:
        return 0.0
    measured: float = kernels.sparse_below(str(device), width, n_latents)
    return measured


Bound = Callable[[Tensor, slice], Tensor]
"""What entries must reach (positive, [] or [m, 1]), as a function of h [m, S] and the slice of its tokens."""


class EncoderWeights:
    """`encoder` [S, d] and `bias` [S], prepared for products in `dtype`.

    With `never_below`, h is raised by the most that rounding may have taken off it, so that every entry that
    is really above a bound is found. In bfloat16 that is 2^-7 |x| |w|: rounding changes each of the factors
    x_i and w_i by at most 2^-8 of itself, and sum |x_i w_i| <= |x| |w|. In float32 it is 2^-13 |x| |w|,
    enough for sums of 1,000 channels and more.
    """

    def __init__(
        self, encoder: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32, never_below: bool = False
    ) -> None:
        self.encoder = encoder
        self.bias = bias
        self.dtype = dtype
        self.never_below = never_below
        # The bias is multiplied along as extra channels, since adding it afterwards costs half as much as the
        # product. bfloat16 needs two channels: the rounded bias, and what rounding took off it.
        high = bias.to(dtype).float()
        rest = [bias] if dtype == torch.float32 else [high, bias - high]
        self.n_bias = len(rest)
        if self.never_below:
            self.slack = _SLACK[dtype] * torch.linalg.vector_norm(encoder, dim=1)
            rest.append(self.slack)
        n_latents, d = encoder.shape
        self.padded = encoder.new_empty(n_latents, d + len(rest), dtype=dtype)
        self.padded[:, :d] = encoder
        for i, part in enumerate(rest, d):
            self.padded[:, i] = part


class Encoder:
    """Computes `h = x encoder^T + bias` for the tokens x [n, d] of one batch."""

    def __init__(self, x: Tensor, weights: EncoderWeights) -> None:
        self.x = x
        self.weights = weights
        padded = pad(x, (0, weights.n_bias), value=1.0)
        if weights.never_below:
            padded = torch.cat([padded, torch.linalg.vector_norm(x, dim=1, keepdim=True)], dim=1)
        self._x = padded.to(weights.dtype)

    @property
    def n_tokens(self) -> int:
        return len(self.x)

    @property
    def n_latents(self) -> int:
        return len(self.weights.encoder)

    def dense(self, rows: slice) -> Tensor:
        """h of the tokens `rows`: [rows, S], in the precision of the product."""
        leave_if_asked()
        return self._x[rows] @ self.weights.padded.T

    def most_raised(self) -> Tensor:
        """The most by which h of each token may exceed its true value because of `never_below`: [n, 1]."""
        length = torch.linalg.vector_norm(self.x, dim=1, keepdim=True)
        return 2 * self.weights.slack.max() * length if self.weights.never_below else 0 * length

    def _few(self) -> slice:
        return slice(None, None, max(1, -(-self.n_tokens // _PROBE_TOKENS)))

    def probe(self) -> Tensor:
        """h of at most 64 tokens, evenly spread over the batch."""
        return self.dense(self._few())

    def density(self, bound: Bound) -> float:
        """The share of entries that reach a bound in the tokens of `probe`."""
        h = self.probe()
        found = at_least(h, bound(h, self._few()))
        return torch.count_nonzero(found).item() / max(1, found.numel())

    def entries(self, rows: slice, bound: Bound, bias: Tensor | None = None) -> SparseLatents:
        """The entries of the tokens `rows`, a slice without a step, that reach a positive bound.

        With `bias` [S], values are computed with this bias instead of the one that entries are found with.
        """
        found = self.entries_up_to(1.0, rows, bound, bias)
        assert found is not None
        return found

    def entries_up_to(
        self, max_density: float, rows: slice, bound: Bound, bias: Tensor | None = None
    ) -> SparseLatents | None:
        """As `entries`; None as soon as it is clear that they are more than a share `max_density` of all.

        The product is computed part by part, so that each part is searched while it is still in the cache.
        """
        x = self._x[rows]
        n_rows = max(_LEAST_ROWS, _CACHED_ELEMENTS // self.n_latents)
        if x.device.type != "cpu":
            n_rows = tokens_per_block(self.n_latents)
        buffer = x.new_empty(min(n_rows, len(x)), self.n_latents)
        found, values = [], []
        left = int(max_density * len(x) * self.n_latents)
        is_exact = self.weights.dtype == torch.float32 and bias is None
        first = rows.start or 0
        for start in range(0, len(x), n_rows):
            leave_if_asked()
            part = x[start : start + n_rows]
            h = torch.mm(part, self.weights.padded.T, out=buffer[: len(part)])
            place = _reaching(h, bound(h, slice(first + start, first + start + len(part))))
            left -= len(place)
            if left < 0:
                return None
            if is_exact:
                values.append(h.view(-1).index_select(0, place))
            found.append(place.add_(start * self.n_latents))
        place = torch.cat(found)
        if is_exact:
            return at_places(place, torch.cat(values), len(x), self.n_latents)
        latents = at_places(place, self.x.new_empty(0), len(x), self.n_latents)
        at_entries = latents.spread(self.weights.bias if bias is None else bias)
        return latents.with_value(latents.products(self.x[rows], self.weights.encoder).add_(at_entries))


def _reaching(h: Tensor, bound: Tensor) -> Tensor:
    """Flat places of the entries that reach their bound: [nnz] int64, ascending."""
    if kernels := kernels_for(h):
        low = bound * _MARGIN if h.dtype == torch.bfloat16 else bound
        found: Tensor = kernels.places(h, low)
        return found
    return places(at_least(h, bound))


def above_zero(h: Tensor, rows: slice) -> Tensor:
    """The bound that entries above 0 reach: the smallest normal float32."""
    return h.new_full((), TINY, dtype=torch.float32)


def positive_latents(encoder: Encoder, max_density: float) -> Iterator[tuple[slice, Latents]]:
    """The entries with h above 0, block by block of tokens.

    Where `found_in_blocks` says so, they are dense, with values and products in the precision of `encoder`.
    Otherwise they are sparse, with values in float32.
    """
    weights = Converted(encoder.weights.dtype)
    for rows, found in found_in_blocks(encoder, above_zero, max_density):
        yield rows, DenseLatents(encoder.dense(rows).relu_(), weights) if found is None else found


def found_in_blocks(
    encoder: Encoder, bound: Bound, max_density: float, bias: Tensor | None = None
) -> Iterator[tuple[slice, SparseLatents | None]]:
    """The entries that reach a bound, block by block of tokens; None where they are to be computed densely.

    This is the one place that decides between sparse and dense. A few tokens of the batch tell whether a share
    of more than `max_density` reaches the bound, and how many tokens make a block. Each sparse block then
    counts its entries, and is dense after all if they are more. So the decision follows from the data alone.
    `bias` is that of `Encoder.entries`.
    """
    density = encoder.density(bound)
    n_dense = tokens_per_block(encoder.n_latents)
    if density > max_density:
        yield from ((rows, None) for rows in blocks(slice(0, encoder.n_tokens), n_dense))
        return
    # Blocks small enough that all entries of a block can be held in memory.
    n_sparse = max(_LEAST_ROWS, int(_MAX_ENTRIES / (max(density, 1e-6) * encoder.n_latents)))
    for rows in blocks(slice(0, encoder.n_tokens), n_sparse):
        found = encoder.entries_up_to(max_density, rows, bound, bias)
        if found is None:
            yield from ((part, None) for part in blocks(rows, n_dense))
        else:
            yield rows, found


def blocks(rows: slice, n_rows: int) -> list[slice]:
    """`rows` cut into equal shares of at most `n_rows`."""
    n = rows.stop - rows.start
    n_blocks = -(-n // n_rows)
    cuts = [rows.start + i * n // n_blocks for i in range(n_blocks + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(cuts)]


def top_latents(encoder: Encoder, k: int) -> SparseLatents:
    """The k largest positive entries of each token: exactly k per token, latents ascending.

    A token with fewer positive entries is filled up with entries of value 0 at latent S - 1.
    """
    return largest(encoder.entries(slice(None), lambda h, _: bound_of_largest(h, k)), k)


def at_least(h: Tensor, bound: Tensor) -> Tensor:
    """Mask of h [n, S] at or above positive bounds.

    In bfloat16 bounds are lowered, so that rounding loses nothing.
    """
    if h.dtype == torch.bfloat16:
        # The bits of positive numbers, read as integers, are in the same order and compare faster.
        return h.view(torch.int16) >= (bound * _MARGIN).to(torch.bfloat16).view(torch.int16).clamp_(min=1)
    return h >= bound


def bound_of_largest(h: Tensor, k: int) -> Tensor:
    """A lower bound of the k-th largest entry of each token, if that is positive: [n, 1].

    It is the k-th largest of the maxima of groups of latents. Few entries reach it, so no row of h is sorted.
    """
    n_latents = h.shape[1]
    group = max(1, n_latents // max(4 * k, 128))
    n_groups = n_latents // group
    maxima = h[:, : n_groups * group].unflatten(1, (group, n_groups)).amax(dim=1)
    bound = maxima.topk(k, dim=1).values[:, -1:].float()
    return bound.clamp_(min=TINY)


def largest(candidates: SparseLatents, k: int) -> SparseLatents:
    """The k largest of each token's candidates, filled up as in `top_latents`."""
    counts = candidates.offsets.diff()
    most = max(k, int(counts.max()))
    value = candidates.value.new_zeros(candidates.n_tokens, most)
    latent = candidates.latent.new_full((candidates.n_tokens, most), candidates.n_latents - 1)
    present = torch.arange(most, device=counts.device) < counts.unsqueeze(1)
    value[present] = candidates.value.clamp(min=0)
    latent[present] = candidates.latent
    if most > k:
        chosen = value.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
        value, latent = value.gather(1, chosen), latent.gather(1, chosen)
    offsets = torch.arange(0, candidates.n_tokens * k + 1, k, device=counts.device)
    return SparseLatents(offsets, latent.flatten(), value.flatten(), candidates.n_latents)
