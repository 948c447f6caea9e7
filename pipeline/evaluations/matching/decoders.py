"""Assigns the latents of two SAEs to each other by the cosines of their decoder rows.

Shapes: n and m latents, d channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Assignment:
    """Pairs of latents, each latent in one at most, and the nearest latent of every latent.

    `is_exact`: no other pairs have a larger sum of cosines.
    """

    first: np.ndarray  # [pairs] int64, ascending
    second: np.ndarray  # [pairs]
    cosine: np.ndarray  # [pairs] float64
    is_exact: bool


def assign(first: Tensor, second: Tensor, n_exact: int, n_candidates: int) -> Assignment:
    """The assignment of decoder rows [n, d] and [m, d] with the largest sum of cosines.

    With at most `n_exact` rows on both sides all pairs are compared (the Hungarian method, as scipy's
    `linear_sum_assignment` does it), and the result is exact. With more, only pairs are considered of which one is
    among the `n_candidates` nearest of the other; it is the best assignment of these pairs.
    """
    if not len(first) or not len(second):
        nothing = np.zeros(0, np.int64)
        return Assignment(nothing, nothing, np.zeros(0), True)
    a, b = normalize(first.float(), dim=1), normalize(second.float(), dim=1)
    if max(len(a), len(b)) <= n_exact:
        return _all_pairs(a, b)
    return _candidates(a, b, n_candidates)


def _all_pairs(a: Tensor, b: Tensor) -> Assignment:
    from scipy.optimize import linear_sum_assignment

    cosine = (a @ b.T).double().numpy()
    row, column = linear_sum_assignment(cosine, maximize=True)
    return Assignment(row, column, cosine[row, column], True)


def _candidates(a: Tensor, b: Tensor, n_candidates: int) -> Assignment:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    n, m = len(a), len(b)
    there, back = _nearest(a, b, n_candidates), _nearest(b, a, n_candidates)
    cell = np.unique(
        np.concatenate(
            [
                (np.arange(n)[:, None] * m + there).ravel(),
                (back * m + np.arange(m)[:, None]).ravel(),
            ]
        )
    )
    row, column = np.divmod(cell, m)
    cosine = np.concatenate(
        [
            (a[torch.from_numpy(row[some])] * b[torch.from_numpy(column[some])]).double().sum(dim=1).numpy()
            for some in np.array_split(np.arange(len(row)), max(1, len(row) // 1_000_000))
        ]
    )
    # scipy assigns every row. A row for which no candidate is left gets a column of its own, which is worth less than
    # any pair; with 2 added, all pairs are worth more than 0.
    rows, columns = np.concatenate([row, np.arange(n)]), np.concatenate([column, m + np.arange(n)])
    worth = np.concatenate([cosine + 2, np.full(n, 1e-6)])
    graph = coo_array((worth, (rows, columns)), shape=(n, m + n)).tocsr()
    found_row, found_column = min_weight_full_bipartite_matching(graph, maximize=True)
    is_pair = found_column < m
    row_of, column_of = found_row[is_pair].astype(np.int64), found_column[is_pair].astype(np.int64)
    return Assignment(row_of, column_of, cosine[np.searchsorted(cell, row_of * m + column_of)], False)


def _nearest(a: Tensor, b: Tensor, n_candidates: int) -> np.ndarray:
    """The rows of b with the largest cosines to each row of a: int64 [n, candidates]."""
    k = min(n_candidates, len(b))
    return torch.cat([(some @ b.T).topk(k, dim=1).indices for some in a.split(_ROWS_AT_ONCE)]).numpy()


def largest_cosines(a: Tensor, b: Tensor) -> np.ndarray:
    """The largest cosine of each row of a [n, d] with a row of b [m, d]: float64 [n]; NaN if b has none."""
    if not len(b) or not len(a):
        return np.full(len(a), np.nan)
    a, b = normalize(a.float(), dim=1), normalize(b.float(), dim=1)
    return torch.cat([(some @ b.T).amax(dim=1) for some in a.split(_ROWS_AT_ONCE)]).double().numpy()
