"""The rankings of latents that the evaluation `masking` uses: by class, by dataset, and at random.

Of latents with equal counts or scores the one with the lower id comes first. So in a ranking by counts the latents
without any counted token follow the others in the order of their ids. In a ranking by scores they have the score 0,
and stand before those that are less active in the class than in the average class.

Shapes: S latents, C classes, K ranked latents.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl

from patchsae.pipeline.core.stage import Within, untold
from patchsae.pipeline.evaluations.statistics.class_counts import class_counts
from patchsae.storage.artifacts import Artifact


def by_count(counts: np.ndarray, n_ranked: int) -> np.ndarray:
    """The K latents with the largest counts or scores, largest first: [S] -> int32 [K]."""
    return np.argsort(-counts, kind="stable")[:n_ranked].astype(np.int32)


def class_ranking(
    statistics: Artifact, n_latents: int, n_classes: int, n_ranked: int, within: Within = untold
) -> np.ndarray:
    """The latents with the most tokens above tau in each class, a_c[s] (spec 4 and 5.1): int32 [C, K].

    `within` is told of every class.
    """
    return _by_class(statistics, n_latents, n_classes, n_ranked, lambda counts: counts, within)


def selective_ranking(
    statistics: Artifact,
    n_latents: int,
    n_classes: int,
    n_ranked: int,
    of_dataset: np.ndarray,
    within: Within = untold,
    n_even: int | None = None,
) -> np.ndarray:
    """The latents that are most active in each class and little in others: int32 [C, K].

    The score of a latent is a_c[s] (a_c[s] / a_D[s] - 1 / C): its tokens above tau in the class, times what the
    class has of its tokens above a class's even share. `of_dataset` [S] are the a_D[s]. `n_even` is C where the
    statistics are of fewer classes than there are. This is no ranking of the
    paper, whose top latents are in large part those that many classes share (spec 9.4).
    """

    def score(counts: np.ndarray) -> np.ndarray:
        share = np.divide(counts, of_dataset, out=np.zeros(n_latents), where=of_dataset > 0)
        return counts * (share - 1 / (n_even or n_classes))

    return _by_class(statistics, n_latents, n_classes, n_ranked, score, within)


def _by_class(
    statistics: Artifact,
    n_latents: int,
    n_classes: int,
    n_ranked: int,
    score: Callable[[np.ndarray], np.ndarray],
    within: Within,
) -> np.ndarray:
    """A ranking per class by the `score` of its tokens above tau, int64 [S] -> [S]: int32 [C, K]."""
    ranking = np.empty((n_classes, n_ranked), np.int32)
    for label, (counts,) in class_counts(statistics, np.arange(n_classes), n_latents, ["n_tokens"]):
        ranking[label] = by_count(score(counts), n_ranked)
        within(label + 1, n_classes, "classes")
    return ranking


def dataset_ranking(latents: pl.DataFrame, n_ranked: int) -> np.ndarray:
    """The latents with the most tokens above tau in the whole split, a_D[s]: int32 [K].

    `latents`: the table of that name.
    """
    return by_count(latents["n_tokens_above"].to_numpy(), n_ranked)


def random_ranking(latents: pl.DataFrame, n_ranked: int, seed: int, alive_first: bool) -> np.ndarray:
    """Latents in a random order, which is the same for all classes: int32 [K].

    With `alive_first`, latents that fire on the statistics' split come before the dead ones. The order is
    that of raw numbers from PCG64, whose stream NumPy guarantees, so it does not depend on NumPy's version.
    """
    key = np.random.PCG64(seed).random_raw(len(latents))
    order = np.argsort(key, kind="stable").astype(np.int32)
    if alive_first:
        is_dead = latents["dead"].to_numpy()[order]
        order = np.concatenate([order[~is_dead], order[is_dead]])
    return order[:n_ranked]


def segments(ks: np.ndarray) -> np.ndarray:
    """The step of the sweep at which each rank is first used: int16 [max k].

    Rank r, counted from 0, is first used at the smallest k > r.
    """
    return np.searchsorted(ks, np.arange(ks.max(initial=0)), side="right").astype(np.int16)
