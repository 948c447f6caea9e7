"""The SAEs of the newest frontier in a store, and the best one within bounds, for `patchsae pick`."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Literal

import polars as pl

from patchsae.pipeline.results.find import SAE_STAGES
from patchsae.pipeline.results.tables import Catalog
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import KEY_DIGITS
from patchsae.storage.store import Store

By = Literal["fvu", "zero_shot_kept"]
_COLUMN = {"fvu": "fvu", "zero_shot_kept": "set_kept_mean"}


def candidates(store: Store, patterns: Sequence[str]) -> pl.DataFrame:
    """The rows of the newest frontier, lowest L0 first, with a column `path` for the folder of each SAE.

    Only SAEs whose names match one of `patterns` are kept; all if there are none. Raises UserError if the
    store has no frontier, or no name matches.
    """
    catalog = Catalog(store)
    if "frontier" not in catalog:
        raise UserError(
            f"{store.root}: no frontier in this store; add an evaluation of kind `frontier` to the experiment and run it."
        )
    frontiers = catalog.artifacts["frontier"]
    # One that no record leads to any more has no names.
    frontiers = [artifact for artifact in frontiers if catalog.knows(artifact)] or frontiers
    newest = max(frontiers, key=lambda one: float(one.manifest.provenance["started"]))
    rows = catalog.scan("frontier").filter(artifact=newest.key).sort("l0", "fvu").collect()
    if "set_kept_mean" not in rows.columns:
        # Tables of earlier versions, whose images were of one class.
        rows = rows.with_columns(set_kept_mean="zero_shot_kept_mean")
    rows = rows.with_columns(
        pl.col("sae", "sae_key").cast(pl.String),
        pl.col("set_kept_mean").fill_null(pl.col("zero_shot_kept_mean")),
    ).with_columns(pl.col("sae").fill_null(pl.col("sae_key").str.head(KEY_DIGITS)))
    chosen = [any(fnmatch.fnmatch(name, pattern) for pattern in patterns) for name in rows["sae"]]
    if patterns and not any(chosen):
        raise UserError(
            f"{newest.path}: has no SAE named {', '.join(patterns)} (it has {', '.join(rows['sae'])})."
        )
    rows = rows.filter(pl.Series(chosen)) if patterns else rows
    # Two names of one SAE are one candidate.
    rows = rows.unique("sae_key", keep="first", maintain_order=True)
    folders = {a.key: str(a.path) for stage in SAE_STAGES for a in store.committed(stage)}
    return rows.with_columns(path=pl.col("sae_key").replace_strict(folders, default=None))


def best(rows: pl.DataFrame, by: By, max_l0: float | None, max_dead: float | None) -> pl.DataFrame:
    """The row that is best by `by` within the bounds. Raises UserError if no row is within them."""
    within = rows
    if max_l0 is not None:
        within = within.filter(pl.col("l0") <= max_l0)
    if max_dead is not None:
        within = within.filter(pl.col("dead_fraction") <= max_dead)
    if within.is_empty():
        least = min(rows["l0"].to_list())
        raise UserError(f"no SAE is within these bounds; the lowest L0 there is is {least:.4g}.")
    return within.sort([_COLUMN[by], "l0"], descending=[by != "fvu", False], nulls_last=True).head(1)
