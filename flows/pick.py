"""Which SAE to use: the Pareto set of the frontiers in a store, and the best under a bound."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from typing import Literal

import polars as pl

from flows.show import table
from storage import tables
from storage.artifacts import Store
from storage.errors import UserError

By = Literal["fvu", "zero_shot_kept"]
_COLUMN = {"fvu": "fvu", "zero_shot_kept": "zero_shot_kept_mean"}
_SHOWN = (
    "sae",
    "kind",
    "n_latents",
    "l0",
    "fvu",
    "explained_variance",
    "dead_fraction",
    "zero_shot_kept_mean",
)


def candidates(store: Store, patterns: Sequence[str]) -> pl.DataFrame:
    """The rows of the newest frontier that was measured, of SAEs whose names match, lowest L0 first, with the path of
    each. Raises UserError if there is no frontier, or none of the SAEs is in it."""
    found = store.committed("frontier")
    if not found:
        raise UserError(
            f"{store.root}: no frontier in this store; add an evaluation of kind `frontier` to the experiment and run it."
        )
    newest = max(found, key=lambda artifact: float(artifact.manifest.provenance["started"]))
    rows = tables.of(newest, "frontier").drop("artifact").sort("l0", "fvu").collect()
    chosen = [any(fnmatch.fnmatch(name, pattern) for pattern in patterns) for name in rows["sae"]]
    if patterns and not any(chosen):
        raise UserError(
            f"{newest.path}: has no SAE named {', '.join(patterns)} (it has {', '.join(rows['sae'])})."
        )
    rows = rows.filter(pl.Series(chosen)) if patterns else rows
    folders = {a.key: str(a.path) for stage in ("train", "import") for a in store.committed(stage)}
    return rows.with_columns(path=pl.col("key").replace_strict(folders, default=None))


def best(rows: pl.DataFrame, by: By, max_l0: float | None, max_dead: float | None) -> pl.DataFrame:
    """The one row to pick. Raises UserError if none is within the bounds."""
    within = rows
    if max_l0 is not None:
        within = within.filter(pl.col("l0") <= max_l0)
    if max_dead is not None:
        within = within.filter(pl.col("dead_fraction") <= max_dead)
    if within.is_empty():
        least = min(rows["l0"].to_list())
        raise UserError(f"no SAE is within these bounds; the lowest L0 there is is {least:.4g}.")
    return within.sort([_COLUMN[by], "l0"], descending=[by != "fvu", False], nulls_last=True).head(1)


def report(rows: pl.DataFrame, picked: pl.DataFrame, by: By) -> str:
    """The Pareto set as a table, the picked one marked, and where that is."""
    name = picked["sae"][0]
    shown = rows.filter(pl.col("on_frontier") | (pl.col("sae") == name)).select(_SHOWN)
    lines = [["->" if row[0] == name else "", *(_text(value) for value in row)] for row in shown.iter_rows()]
    header = ["", "sae", "objective", "latents", "L0", "FVU", "EV", "dead", "zero-shot kept"]
    return "\n\n".join(
        (
            f"{len(shown)} of {len(rows)} SAEs are on the frontier of L0 and FVU.",
            table(header, lines, right=header[3:]),
            f"Best by {by}: train/{name}, {picked['path'][0]}",
        )
    )


def as_json(rows: pl.DataFrame, picked: pl.DataFrame) -> str:
    """Every row as an object, with `picked` set on one."""
    name = picked["sae"][0]
    return json.dumps([{**row, "picked": row["sae"] == name} for row in rows.iter_rows(named=True)], indent=1)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value if value is not None else "")
