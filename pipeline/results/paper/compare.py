"""Our figures beside the published ones, cell by cell, for `patchsae compare-paper`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from patchsae.pipeline.core.text import count
from patchsae.pipeline.results.paper import published
from patchsae.pipeline.results.paper.ours import SCHEMA, measured
from patchsae.pipeline.results.paper.published import CELL, DATASETS, HALVES, MEAN, TABLES, harmonic_mean
from patchsae.pipeline.results.tables import Catalog
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store

COLUMNS = (
    *CELL,
    "published",
    "published_std",
    "ours",
    "std",
    "n_seeds",
    "seed",
    "difference",
    "setting",
    "source",
    "confidence",
    "remark",
)
"""The columns of a comparison. With `seeds` there is a row per seed too, whose `seed` is not null and whose `std` and
`n_seeds` are."""

_SETTING = ("experiment", "settings")
_ORDER = "order"
_PUBLISHED_SHOTS = 16
# Table -> the templates with which its CLIP was classified.
_PUBLISHED_TEMPLATES = {"table-1": "imagenet", "base-to-novel": "dataset"}


@dataclass(frozen=True)
class Comparison:
    """The rows of published tables, with ours beside them where there are any."""

    frame: pl.DataFrame
    missing: Mapping[str, str]
    """Table -> a sentence that says what the store lacks and what to run, if nothing of the table is there."""
    remarks: Sequence[str]
    """Sentences about runs that were left out."""

    @property
    def n_compared(self) -> int:
        return len(self.frame.filter(pl.col("difference").is_not_null()))


def compare(
    store: Store, experiment: str | None = None, seeds: bool = False, tables: Collection[str] = ()
) -> Comparison:
    """Compares a store, or one experiment of it, with published tables: those of `tables`, or all.

    Raises UserError if there is no such experiment, or if a table is deleted while it is read.
    """
    try:
        runs, n_other_models = measured(Catalog(store, experiment))
    except OSError as error:
        raise UserError(
            f"compare-paper: {error.filename or 'a table'} was deleted or replaced while it was read; compare again."
        ) from None
    wanted = [name for name in TABLES if not tables or name in tables]
    ours = _of_runs(runs)
    if not seeds:
        ours = ours.filter(pl.col("seed").is_null())
    figures = published.figures().with_row_index(_ORDER)
    frame = (
        figures.join(ours, on=CELL, how="full", nulls_equal=True, coalesce=True)
        .filter(pl.col("table").is_in(wanted))
        .rename({"value": "published", "std": "published_std", "ours_std": "std"})
        .with_columns(difference=pl.col("ours") - pl.col("published"))
    )
    # Cells that nobody published, such as a method's datasets where only the mean is, follow those of their dataset.
    frame = frame.sort(
        pl.col("table").replace_strict({name: i for i, name in enumerate(TABLES)}, return_dtype=pl.Int64),
        pl.col(_ORDER).min().over("table", "dataset"),
        _ORDER,
        "method",
        "dataset",
        "classes",
        "setting",
        pl.col("seed").fill_null(-1),
        nulls_last=True,
        maintain_order=True,
    )
    frame = frame.with_columns(remark=_remarks(frame, figures)).select(COLUMNS)
    there = set(runs["table"])
    return Comparison(
        frame,
        {name: _missing(name) for name in wanted if name not in there},
        _left_out(n_other_models),
    )


def _missing(name: str) -> str:
    table = TABLES[name]
    return f"No {table.needs} in this store: run `{table.command}`."


def _left_out(n_other_models: int) -> list[str]:
    if not n_other_models:
        return []
    return [
        f"{count(n_other_models, 'result')} of published datasets left out: their backbone is not OpenAI's CLIP ViT-B/16, "
        "of which the published tables are."
    ]


def _of_runs(runs: pl.DataFrame) -> pl.DataFrame:
    """Our cells: per setting the mean over runs (`seed` is null), and every run.

    Columns: those of `CELL`, `ours`, `ours_std`, `n_seeds`, `seed`, `setting`.
    """
    runs = pl.concat([runs, _means(runs)])
    same = [*CELL, *_SETTING]
    means = runs.group_by(same, maintain_order=True).agg(
        ours=pl.col("value").mean(),
        ours_std=pl.col("value").std(),
        n_seeds=pl.col("seed").count().cast(pl.Int64),
        seed=pl.lit(None, pl.Int64),
    )
    # The harmonic mean of the mean accuracies, as in the published tables; its deviation is that over seeds.
    deviations = _harmonic(runs, "value").group_by(same).agg(ours_std=pl.col("value").std())
    harmonic = (
        _harmonic(means, "ours").drop("ours_std").join(deviations, on=same, how="left", nulls_equal=True)
    )
    single = pl.concat([runs, _harmonic(runs, "value").select(runs.columns)]).filter(
        pl.col("seed").is_not_null()
    )
    single = single.rename({"value": "ours"}).with_columns(
        ours_std=pl.lit(None, pl.Float64), n_seeds=pl.lit(None, pl.Int64)
    )
    columns = [*same, "ours", "ours_std", "n_seeds", "seed"]
    found = pl.concat([means.select(columns), harmonic.select(columns), single.select(columns)])
    return _with_settings(found)


def _means(runs: pl.DataFrame) -> pl.DataFrame:
    """The means over the 11 datasets, per setting and seed, where all are there."""
    cell = [name for name in CELL if name != "dataset"]
    whole = (
        runs.filter(pl.col("table").is_in(["table-1", "base-to-novel"]), pl.col("quantity") != "gain")
        .group_by([*cell, *_SETTING, "seed"], maintain_order=True)
        .agg(
            pl.col("value").mean(),
            pl.col("made").max(),
            run=pl.lit(MEAN),
            n_datasets=pl.col("dataset").n_unique(),
            n_runs=pl.len(),
        )
        # With two runs of one seed and dataset it would be no mean over datasets.
        .filter(pl.col("n_datasets") == len(DATASETS), pl.col("n_runs") == len(DATASETS))
    )
    return whole.with_columns(dataset=pl.lit(MEAN)).select(list(SCHEMA))


def _harmonic(rows: pl.DataFrame, value: str) -> pl.DataFrame:
    """The harmonic means of accuracies of base and novel classes, per setting and whatever else the rows have."""
    accuracies = rows.filter(pl.col("table") == "base-to-novel", pl.col("quantity") == "accuracy")
    same = ["table", "dataset", "method", *_SETTING, *(c for c in ("run", "seed") if c in rows.columns)]
    base, novel = (accuracies.filter(pl.col("classes") == one) for one in HALVES)
    both = base.join(novel.select(*same, other=value), on=same, nulls_equal=True)
    return both.with_columns(
        pl.struct(value, "other")
        .map_elements(lambda pair: harmonic_mean(pair[value], pair["other"]), pl.Float64)
        .alias(value),
        classes=pl.lit(None, pl.String),
        quantity=pl.lit("harmonic_mean"),
    ).drop("other")


def _with_settings(rows: pl.DataFrame) -> pl.DataFrame:
    """Replaces experiment and settings by the columns `setting`, `shots` and `templates`.

    `setting` is a text with the experiment, and what tells the settings of a method in a table apart.
    """
    of = ["table", "method"]
    texts = []
    for (table, method), alike in rows.select(*of, *_SETTING).unique().group_by(of):
        parsed = [(experiment, text, json.loads(text)) for experiment, text in alike.select(_SETTING).rows()]
        varied = _varied([fields for *_, fields in parsed])
        for experiment, text, fields in parsed:
            words = [f"{name} {_word(fields.get(name))}" for name in varied]
            setting = ", ".join([experiment, *words])
            known = fields.get("shots"), _word(fields.get("prompts.templates"))
            texts.append((table, method, experiment, text, setting, *known))
    schema = {
        **dict.fromkeys([*of, *_SETTING, "setting"], pl.String),
        "shots": pl.Int64,
        "templates": pl.String,
    }
    named = pl.DataFrame(texts, schema=schema, orient="row")
    return rows.join(named, on=[*of, *_SETTING], how="left", maintain_order="left").drop(_SETTING)


def _varied(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields that have not the same value in all settings, in alphabetical order."""
    names = sorted({name for one in settings for name in one})
    return [name for name in names if len({json.dumps(one.get(name)) for one in settings}) > 1]


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _remarks(frame: pl.DataFrame, figures: pl.DataFrame) -> pl.Series:
    """What matters about each row, as one text; null if nothing does."""
    noisy = {
        (row["dataset"], row["classes"]): row["std"]
        for row in figures.filter(pl.col("std").is_not_null()).iter_rows(named=True)
    }
    several = set(figures.filter(pl.struct(CELL).is_duplicated()).select(CELL).rows())
    elsewhere = {
        (row["dataset"], row["method"], row["classes"]): row["value"]
        for row in figures.filter(
            pl.col("table") == "base-to-novel", pl.col("confidence") == "verified"
        ).iter_rows(named=True)
    }
    found = []
    for row in frame.iter_rows(named=True):
        texts = []
        if row["confidence"] == "re-run" or tuple(row[name] for name in CELL) in several:
            texts += [row["source"]] if row["source"] is not None else []
        if row["confidence"] in ("inferred", "suspect"):
            texts.append(f"{row['confidence']}: {published.CONFIDENCE[row['confidence']]}")
        if row["quantity"] == "accuracy":
            spread = noisy.get((row["dataset"], row["classes"]))
            if spread is not None and row["method"] != "clip":
                texts.append(f"varies by {spread:g} points between seeds")
            other = elsewhere.get((row["dataset"], row["method"], row["classes"]))
            templates = _PUBLISHED_TEMPLATES.get(row["table"])
            if row["method"] == "clip" and row["templates"] not in (None, "null", templates):
                texts.append(f"templates: {row['templates']}, published: {templates}")
            if row["table"] == "table-1" and other is not None and row["published"] is not None:
                texts.append(f"{other:.2f} in base-to-novel")
        if row["shots"] not in (None, _PUBLISHED_SHOTS) and row["published"] is not None:
            texts.append(f"{row['shots']} shots, published {_PUBLISHED_SHOTS}")
        found.append("; ".join(texts) or None)
    return pl.Series("remark", found, pl.String)
