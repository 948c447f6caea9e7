"""The groups of latents that tell what adaptation did to a class, and the formulas beside them (spec 6).

x and y are the tokens of a class above tau, a_c[s], of the backbone before and after adaptation. U is the `upper`-th
largest of the pooled values of x and y, to which every latent gives two, and L the `lower`-th largest. Latents without
a counted token are in no group: where fewer than `upper` values are above 0, U would be 0 and say nothing.

Shapes: S latents. Leading dimensions are those of classes or resamples.
"""

from __future__ import annotations

import numpy as np

GROUPS = ("high", "high_to_low", "low_to_high")
ACTIVITIES = ("kept", "added", "removed")


def bounds(x: np.ndarray, y: np.ndarray, upper: int, lower: int) -> tuple[np.ndarray, np.ndarray]:
    """(U, L) of counts [..., S]: the `upper`-th and the `lower`-th largest of both together; [..., 1] each.

    If there are fewer values than that, it is the smallest.
    """
    pooled = np.concatenate([x, y], axis=-1)
    n = pooled.shape[-1]
    places = sorted({max(0, n - upper), max(0, n - lower)})
    ordered = np.partition(pooled, places, axis=-1)
    return ordered[..., max(0, n - upper), None], ordered[..., max(0, n - lower), None]


def groups(x: np.ndarray, y: np.ndarray, upper: int, lower: int) -> np.ndarray:
    """Whether each latent is in each of `GROUPS`: counts [..., S] -> bool [3, ..., S].

    high: x >= U and y >= U. high to low: x >= U and y < L. low to high: x < L and y >= U. Of latents that tie with a
    bound, all belong to what is `>=` it. So identical models without ties have `upper / 2` latents in `high`, and none in
    the others.
    """
    U, L = bounds(x, y, upper, lower)
    U = np.maximum(U, 1)
    return np.stack([(x >= U) & (y >= U), (x >= U) & (y < L), (x < L) & (y >= U)])


def activities(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether each latent is in each of `ACTIVITIES`: bool, whether it is active before and after, [..., S] ->
    bool [3, ..., S]."""
    return np.stack([x & y, ~x & y, x & ~y])


def correlations(x: np.ndarray, y: np.ndarray, n_top: int) -> tuple[float | None, float | None, int]:
    """(Pearson, Spearman, number of latents) of counts [S], over the `n_top` latents with the largest max(x, y).

    Latents with no counted token on either side are left out. None where a correlation is not defined.
    """
    from scipy.stats import rankdata

    peak = np.maximum(x, y)
    chosen = np.argsort(-peak, kind="stable")[:n_top]
    chosen = chosen[peak[chosen] > 0]
    a, b = x[chosen].astype(np.float64), y[chosen].astype(np.float64)
    return _pearson(a, b), _pearson(rankdata(a), rankdata(b)), len(chosen)


def _pearson(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def gain(before: float, after: float) -> float | None:
    """Table 1's delta, (after - before) / (1 - before), from accuracies of 0 to 1; None if `before` is 1."""
    return None if before >= 1 else (after - before) / (1 - before)
