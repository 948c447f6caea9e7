"""Curves of the table `masking`: accuracy by the number of latents that are on or off, with intervals."""

from __future__ import annotations

from typing import Any

import polars as pl

from patchsae.explorer.library import Library
from patchsae.explorer.view import View
from patchsae.storage.artifacts import Artifact
from patchsae.storage.manifest import KEY_DIGITS


def curves_of(library: Library, view: View, artifact: Artifact, label: int) -> dict[str, Any]:
    """The curves of one class, and of all images, in an artifact of the evaluation `masking`."""
    place = next(iter(view.snapshot.places("masking", artifact.key)), None)
    scanned = artifact.scan("masking")
    rows = scanned.filter((pl.col("class") == label) | pl.col("class").is_null()).collect()
    return {
        "key": artifact.key[:KEY_DIGITS],
        "name": place.name if place else artifact.key[:KEY_DIGITS],
        **_curves(rows.filter(pl.col("class") == label)),
        "all": _curves(rows.filter(pl.col("class").is_null())),
    }


def _curves(rows: pl.DataFrame) -> dict[str, Any]:
    """CURVE of every selection, mode and statistics, and REFERENCE of the rows without a selection."""
    if "seeds_accuracy" not in rows.columns:
        # A table of an earlier version: the mean over the seeds has no interval of its own.
        rows = rows.with_columns(seeds_accuracy="accuracy", seeds_ci_low="ci_low", seeds_ci_high="ci_high")
    if "statistics_key" not in rows.columns:
        rows = rows.with_columns(statistics_key=pl.lit(None, pl.String))
    numbers = {"accuracy": "seeds_accuracy", "ci_low": "seeds_ci_low", "ci_high": "seeds_ci_high"}
    one_per_k = (
        rows.group_by("selection", "mode", "statistics_key", "k", maintain_order=True)
        .agg(pl.col(column).mean().alias(name) for name, column in numbers.items())
        .sort("k", maintain_order=True)
    )
    curves: dict[tuple[Any, ...], dict[str, Any]] = {}
    references = []
    for row in one_per_k.iter_rows(named=True):
        point = {name: row[name] for name in numbers}
        if row["selection"] == "none":
            references.append({"name": row["mode"], **point})
            continue
        key = row["statistics_key"]
        about = (row["selection"], row["mode"], key and key[:KEY_DIGITS])
        curve = curves.setdefault(
            about, {**dict(zip(("selection", "mode", "statistics"), about, strict=True)), "points": []}
        )
        curve["points"].append({"k": row["k"], **point})
    return {"curves": list(curves.values()), "references": references}
