"""The orders of latents that masks are made from, and the means of latents, from the tables of `statistics`.

Shapes: S latents, C classes, K ranked latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from patchsae.pipeline.core.progress import Bar
from patchsae.pipeline.evaluations.masking.settings import MaskingSettings, Ranking
from patchsae.pipeline.evaluations.statistics.rankings import (
    class_ranking,
    dataset_ranking,
    random_ranking,
    selective_ranking,
)
from patchsae.storage.artifacts import Artifact


def orders_of(
    settings: MaskingSettings,
    statistics: Sequence[Artifact],
    n_latents: int,
    n_classes: int,
    n_even: Sequence[int],
    bar: Bar,
) -> dict[str, np.ndarray]:
    """`Ranking.order` -> its latents: int32 [C, K] by class, else [1, K].

    `n_even` has, for each of the statistics, the number of classes that share its tokens.
    """
    tables = [latents_of(one) for one in statistics]
    n_ranked = int(settings.finite_ks(n_latents).max(initial=0))
    # A latent is dead if it fires on none of the splits.
    pool = tables[0].select(dead=pl.Series(np.all([table["dead"] for table in tables], axis=0)))
    found: dict[str, np.ndarray] = {}
    for ranking in bar.over(settings.rankings(len(statistics))):
        if ranking.order not in found:
            found[ranking.order] = _order(
                ranking, settings, statistics, tables, pool, n_latents, n_classes, n_even, n_ranked, bar
            )
    return found


def _order(
    ranking: Ranking,
    settings: MaskingSettings,
    statistics: Sequence[Artifact],
    tables: Sequence[pl.DataFrame],
    pool: pl.DataFrame,
    n_latents: int,
    n_classes: int,
    n_even: Sequence[int],
    n_ranked: int,
    bar: Bar,
) -> np.ndarray:
    if ranking.statistics is None:
        assert ranking.seed is not None
        return random_ranking(pool, n_ranked, ranking.seed, settings.random_pool == "alive")[None]
    artifact, table = statistics[ranking.statistics], tables[ranking.statistics]
    if ranking.selection == "dataset":
        return dataset_ranking(table, n_ranked)[None]
    if ranking.selection in ("class", "prediction"):
        return class_ranking(artifact, n_latents, n_classes, n_ranked, bar.within)
    of_dataset = table["n_tokens_above"].to_numpy()
    even = n_even[ranking.statistics]
    return selective_ranking(artifact, n_latents, n_classes, n_ranked, of_dataset, bar.within, even)


def latents_of(statistics: Artifact) -> pl.DataFrame:
    """The columns of the table `latents` that orders and means are made from."""
    columns = ("n_tokens_above", "dead", "token_frequency", "mean_token_activation")
    return statistics.scan("latents").select(columns).collect()


def means_of(statistics: Artifact) -> np.ndarray:
    """The mean of each latent over all counted tokens of the statistics' split: float32 [S].

    It is token_frequency times mean_token_activation, which is the mean over the tokens above 0.
    """
    table = latents_of(statistics)
    above = table["mean_token_activation"].fill_null(0.0).fill_nan(0.0).to_numpy()
    return (table["token_frequency"].to_numpy() * above).astype(np.float32)
