"""Which latents fire on the same tokens, for the table `cofiring`.

Shapes: n tokens, S latents, nnz entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# Pairs that are counted at a time: 200 MB.
_PAIRS = 4_000_000
# Shares from 2^-24 to 1 in bins of an eighth of an octave: the leading bits of a float32.
_BITS, _LOWEST = 20, (127 - 24) << 3
_N_BINS = (24 << 3) + 1


def cofiring(
    n_entries: np.ndarray,
    latent: np.ndarray,
    n_latents: int,
    k: int,
    advance: Callable[[int], object] = lambda n: None,
) -> dict[str, np.ndarray]:
    """The columns of the table, from the latents that are on: token i has the next `n_entries[i]` of `latent` [nnz].

    At most `k` rows per latent. `advance` is called with the number of latents that are done. Some latents are
    multiplied with all others at a time, so that no array of S x S is made.
    """
    from scipy.sparse import csr_array

    ends = np.concatenate([[0], np.cumsum(n_entries, dtype=np.int64)])
    on = csr_array((np.ones(len(latent), np.int32), latent, ends), shape=(len(n_entries), n_latents))
    columns = on.T.tocsr()
    n_on = np.diff(columns.indptr).astype(np.int64)
    # So many pairs does the product of a latent with all others add up.
    n_pairs = columns @ n_entries.astype(np.int64)
    found = []
    for start, stop in groups_of(n_pairs, _PAIRS):
        both = (columns[start:stop] @ on).tocsr()
        both.sort_indices()
        found.append(_best(both, start, n_on, len(n_entries), k))
        advance(stop - start)
    return {name: np.concatenate([rows[name] for rows in found]) for name in found[0]}


def groups_of(sizes: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Cuts items into runs (first, last + 1), each of a total size of at most `most`, or of one item."""
    upto = np.concatenate([[0], np.cumsum(sizes)])
    start = 0
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(upto, upto[start] + most, side="right")) - 1)
        yield start, stop
        start = stop


def _best(both: Any, start: int, n_on: np.ndarray, n_tokens: int, k: int) -> dict[str, np.ndarray]:
    """The rows of the latents from `start` on, from their counts with all latents: a sparse array [latents, S]."""
    row = np.repeat(np.arange(both.shape[0]), np.diff(both.indptr))
    other = both.indices.astype(np.int64)
    is_other = other != row + start
    row, other, n_both = row[is_other], other[is_other], both.data[is_other].astype(np.int64)
    n_latent, n_other = n_on[row + start], n_on[other]
    jaccard = n_both / (n_latent + n_other - n_both)
    chance = np.flatnonzero(_may_be_among(row, jaccard, both.shape[0], k))
    row, other, n_both, n_latent, n_other, jaccard = (
        values[chance] for values in (row, other, n_both, n_latent, n_other, jaccard)
    )
    # Entries are in the order of `other`, and the sort is stable.
    order = np.lexsort((-jaccard, row))
    ordered = row[order]
    rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    order, rank = order[rank < k], rank[rank < k]
    n_both, n_latent, n_other = n_both[order], n_latent[order], n_other[order]
    return {
        "latent": (row[order] + start).astype(np.int32),
        "rank": (rank + 1).astype(np.int32),
        "other": other[order].astype(np.int32),
        "n_both": n_both.astype(np.int32),
        "n_latent": n_latent.astype(np.int32),
        "n_other": n_other.astype(np.int32),
        "jaccard": jaccard[order].astype(np.float32),
        "lift": (n_both * (n_tokens / (n_latent * n_other))).astype(np.float32),
    }


def _may_be_among(row: np.ndarray, share: np.ndarray, n_rows: int, k: int) -> np.ndarray:
    """Whether each of some shares, above 0 and at most 1, may be one of the k largest of its row.

    It is in the bin that holds the k-th largest, or in a higher one. Few others are left to be sorted, which would
    take longer than everything else.
    """
    bins = np.maximum((share.astype(np.float32).view(np.int32) >> _BITS) - _LOWEST, 0)
    counts = np.bincount(row * _N_BINS + bins, minlength=n_rows * _N_BINS).reshape(n_rows, _N_BINS)
    at_least = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    # The highest bin that has k of them in it and above it; the first bin if there are fewer.
    least = np.maximum((at_least >= k).sum(axis=1) - 1, 0)
    found: np.ndarray = bins >= least[row]
    return found
