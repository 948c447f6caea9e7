"""The one dense product of a training step, `h = x encoder^T + bias`, of which only some entries are kept.

In bfloat16 the product only finds entries; their values are computed anew in float32. (bfloat16 is 2.5 times faster
than float32 on CPUs that have its products, and more on accelerators.)

Shapes: n tokens, d channels, S latents, nnz entries.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.latents import SparseLatents, tokens_per_block
from pipeline.saes.codes import Codes, DenseCodes, SparseCodes, kernels_for

# Above this share of positive entries the dense products are faster; measured at d = 128 and 768.
MAX_DENSITY = 0.2
_PROBE_TOKENS = 64
# Entries that are held at once.
_MAX_ENTRIES = 8_000_000
# Of one part of a product: 4 MB, but never so few tokens that it is slow.
_CACHED_ELEMENTS = 1 << 20
_LEAST_ROWS = 256
# Two units in the last place of bfloat16: what the k-th largest may have lost to rounding.
_MARGIN = 1 - 2**-6
TINY = torch.finfo(torch.float32).tiny


class Encoder:
    """`x encoder^T + bias` for one batch: x [n, d], encoder [S, d], bias [S]."""

    def __init__(self, x: Tensor, encoder: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.x = x
        self.encoder = encoder
        self.bias = bias
        self.dtype = dtype
        # The bias as more channels: added otherwise, it costs as much as half the product. Two of them in bfloat16,
        # for the bias and for what it lost to rounding.
        high = bias.to(dtype).float()
        rest = [bias] if dtype == torch.float32 else [high, bias - high]
        self._x = pad(x, (0, len(rest)), value=1.0).to(dtype)
        n_latents, d = encoder.shape
        self._encoder = encoder.new_empty(n_latents, d + len(rest), dtype=dtype)
        self._encoder[:, :d] = encoder
        for i, part in enumerate(rest, d):
            self._encoder[:, i] = part

    @property
    def n_tokens(self) -> int:
        return len(self.x)

    @property
    def n_latents(self) -> int:
        return len(self.encoder)

    def dense(self, rows: slice) -> Tensor:
        """h of some tokens: [rows, S], in the product's own precision."""
        return self._x[rows] @ self._encoder.T

    def probe(self) -> Tensor:
        """h of a few tokens, spread over the batch."""
        return self.dense(slice(None, None, -(-self.n_tokens // _PROBE_TOKENS)))

    def entries(self, rows: slice, bound: Callable[[Tensor], Tensor]) -> SparseCodes:
        """The entries of some tokens that reach a positive bound, see `at_least`: h of a part of them [m, S] -> [] or
        [m, 1].

        They are found while their part of the product is still in the cache.
        """
        x = self._x[rows]
        n_rows = max(_LEAST_ROWS, _CACHED_ELEMENTS // self.n_latents)
        if x.device.type != "cpu":
            n_rows = tokens_per_block(self.n_latents)
        buffer = x.new_empty(min(n_rows, len(x)), self.n_latents)
        places, values = [], []
        for start in range(0, len(x), n_rows):
            part = x[start : start + n_rows]
            h = torch.mm(part, self._encoder.T, out=buffer[: len(part)])
            place = _places(h, bound(h))
            if self.dtype == torch.float32:
                values.append(h.view(-1).index_select(0, place))
            places.append(place.add_(start * self.n_latents))
        place = torch.cat(places)
        token = place // self.n_latents
        offsets = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
        torch.cumsum(torch.bincount(token, minlength=len(x)), 0, out=offsets[1:])
        latent = (place - token * self.n_latents).int()
        if values:
            return SparseCodes(SparseLatents(offsets, latent, torch.cat(values), self.n_latents))
        codes = SparseCodes(SparseLatents(offsets, latent, self.bias.index_select(0, latent), self.n_latents))
        return codes.with_values(codes.products(self.x[rows], self.encoder).add_(codes.values))


def _places(h: Tensor, bound: Tensor) -> Tensor:
    """Flat places of the entries that reach their bound: [nnz] int64, ascending."""
    if kernels := kernels_for(h):
        low = bound * _MARGIN if h.dtype == torch.bfloat16 else bound
        found: Tensor = kernels.places(h, low)
        return found
    mask = at_least(h, bound)
    if mask.device.type == "cpu":
        # Seven times faster than torch.nonzero.
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.view(-1).nonzero().squeeze(1)


def _above_zero(h: Tensor) -> Tensor:
    return h.new_full((), TINY, dtype=torch.float32)


def _max_density(encoder: Encoder, on_cpu: float) -> float:
    """The density above which dense products are faster."""
    device = encoder.x.device
    if device.type == "cpu":
        return on_cpu
    kernels = kernels_for(encoder.x)
    if kernels is None:
        return 0.0
    measured: float = kernels.sparse_below(str(device), encoder.x.shape[1], encoder.n_latents)
    return measured


def positive_codes(encoder: Encoder, max_density: float = MAX_DENSITY) -> Iterator[tuple[slice, Codes]]:
    """The entries with h above 0, block by block of tokens.

    Dense if more than `max_density` of a few tokens' entries are positive; on a CUDA device, more than was measured
    there to be worth it, and always where there are no kernels.
    """
    probe = encoder.probe() > 0
    density = torch.count_nonzero(probe).item() / probe.numel()
    if density > _max_density(encoder, max_density):
        for rows in _blocks(encoder.n_tokens, tokens_per_block(encoder.n_latents)):
            yield rows, DenseCodes(encoder.dense(rows).float().relu_(), encoder.dtype)
    else:
        n_rows = int(_MAX_ENTRIES / (max(density, 1e-6) * encoder.n_latents))
        for rows in _blocks(encoder.n_tokens, max(_LEAST_ROWS, n_rows)):
            yield rows, SparseCodes(encoder.entries(rows, _above_zero).entries)


def _blocks(n: int, n_rows: int) -> list[slice]:
    """Equal shares of `range(n)` of at most `n_rows`."""
    n_blocks = -(-n // n_rows)
    cuts = [i * n // n_blocks for i in range(n_blocks + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(cuts)]


def top_codes(encoder: Encoder, k: int) -> SparseCodes:
    """The k largest entries of each token, those below 0 with the value 0: exactly k per token, latents ascending.

    No row is sorted: the k-th largest of the maxima of groups of latents is a lower bound of the k-th largest
    entry, and few entries reach it.
    """
    return _largest(encoder.entries(slice(None), lambda h: _bound_of_largest(h, k)), k)


def at_least(h: Tensor, bound: Tensor) -> Tensor:
    """Mask of h [n, S] at or above positive bounds; in bfloat16 a little below, so that rounding loses nothing."""
    if h.dtype == torch.bfloat16:
        # Bits as integers are in the order of the positive numbers they stand for, and compare faster.
        return h.view(torch.int16) >= (bound * _MARGIN).to(torch.bfloat16).view(torch.int16).clamp_(min=1)
    return h >= bound


def _bound_of_largest(h: Tensor, k: int) -> Tensor:
    """What the k-th largest entry of each token reaches: [n, 1]."""
    n_latents = h.shape[1]
    group = max(1, n_latents // max(4 * k, 128))
    n_groups = n_latents // group
    maxima = h[:, : n_groups * group].unflatten(1, (group, n_groups)).amax(dim=1)
    bound = maxima.topk(k, dim=1).values[:, -1:].float()
    return bound.clamp_(min=TINY)


def _largest(candidates: SparseCodes, k: int) -> SparseCodes:
    """The k largest of each token's candidates."""
    entries = candidates.entries
    counts = entries.offsets.diff()
    most = max(k, int(counts.max()))
    value = candidates.values.new_zeros(entries.n_tokens, most)
    latent = entries.latent.new_full((entries.n_tokens, most), entries.n_latents - 1)
    present = torch.arange(most, device=counts.device) < counts.unsqueeze(1)
    value[present] = candidates.values.clamp(min=0)
    latent[present] = entries.latent
    if most > k:
        chosen = value.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
        value, latent = value.gather(1, chosen), latent.gather(1, chosen)
    offsets = torch.arange(0, entries.n_tokens * k + 1, k, device=counts.device)
    return SparseCodes(SparseLatents(offsets, latent.flatten(), value.flatten(), entries.n_latents))
