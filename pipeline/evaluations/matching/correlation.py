"""Correlates the activations of two SAEs' latents over the same tokens, or images.

Shapes: N tokens or images, n and m latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_CELLS = 16_000_000


@dataclass(frozen=True)
class BestCorrelations:
    """The latent of the other SAE with which each latent correlates most: arrays [n].

    `latent` is -1, and `correlation` NaN, for a latent whose activation is the same everywhere, such as a dead one.
    """

    latent: np.ndarray
    correlation: np.ndarray


def best_correlations(
    first: Any, second: Any, advance: Callable[[int], object] = lambda n: None
) -> tuple[BestCorrelations, BestCorrelations]:
    """The largest Pearson correlation of each latent of either side: from activations [N, n] and [N, m], sparse arrays of
    scipy.

    With sums over all N tokens, r = (sum f g / N - mean f mean g) / (std f std g). Some latents of the first are taken
    at a time, so that no array of n x m is made. `advance` is called with the number of latents done. Of latents that
    correlate equally the one with the lower id is taken.
    """
    n_rows = first.shape[0]
    columns = first.astype(np.float64).tocsc()
    other = second.astype(np.float64).tocsr()
    mean_f, std_f = _moments(columns)
    mean_g, std_g = _moments(other.tocsc())
    n, m = first.shape[1], second.shape[1]
    best_f, of_f = np.full(n, -np.inf), np.full(n, -1, np.int64)
    best_g, of_g = np.full(m, -np.inf), np.full(m, -1, np.int64)
    step = max(1, _CELLS // max(1, m))
    for start in range(0, n, step):
        some = slice(start, min(start + step, n))
        products = (columns[:, some].T.tocsr() @ other).toarray() / n_rows
        scale = std_f[some, None] * std_g
        r = np.divide(
            products - mean_f[some, None] * mean_g, scale, out=np.full(scale.shape, -np.inf), where=scale > 0
        )
        if m:
            of_f[some], best_f[some] = r.argmax(axis=1), r.max(axis=1)
            here = r.argmax(axis=0)
            largest = r[here, np.arange(m)]
            better = largest > best_g
            best_g[better], of_g[better] = largest[better], start + here[better]
        advance(some.stop - start)
    return _result(of_f, best_f), _result(of_g, best_g)


def _moments(columns: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column; that of a column without variation is 0."""
    n = columns.shape[0]
    mean = np.asarray(columns.sum(axis=0)).ravel() / n
    power = np.asarray(columns.multiply(columns).sum(axis=0)).ravel() / n
    variance = power - mean**2
    # What rounding leaves of a constant column is no variation.
    return mean, np.sqrt(np.where(variance > 1e-12 * power, variance, 0.0))


def _result(latent: np.ndarray, best: np.ndarray) -> BestCorrelations:
    is_known = np.isfinite(best)
    # Rounding may take a correlation of 1 above it.
    value = np.where(is_known, np.clip(best, -1.0, 1.0), np.nan)
    return BestCorrelations(np.where(is_known, latent, -1), value)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float | None:
    """The mean of the values that are known, weighted; None if nothing is."""
    known = ~np.isnan(values)
    total = float(weights[known].sum())
    return float((values[known] * weights[known]).sum() / total) if total > 0 else None
