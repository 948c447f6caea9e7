"""The published figures: what can be checked of them recomputes, and nothing is there twice or without a source."""

from __future__ import annotations

import polars as pl
import pytest

from patchsae.flows.cli.paper import PublishedTable
from patchsae.pipeline.results.paper.published import (
    CELL,
    CONFIDENCE,
    DATASETS,
    MEAN,
    TABLES,
    figures,
    gain,
    harmonic_mean,
    saes,
)

FIGURES = figures()
# Half of the last digit of a figure, for both sides of a comparison.
ROUNDING = 0.0101


def value(table: str, dataset: str, method: str, classes: str | None, quantity: str) -> float:
    cell = dict(zip(CELL, (table, dataset, method, classes, quantity), strict=True))
    same = pl.all_horizontal(pl.col(name).eq_missing(one) for name, one in cell.items())
    return FIGURES.filter(same, pl.col("confidence") != "re-run")["value"].to_list()[0]


def test_every_figure_has_a_cell_a_source_and_a_confidence() -> None:
    assert len(FIGURES) == 301
    assert FIGURES.select("table", "dataset", "method", "quantity", "source", "confidence").null_count().row(
        0
    ) == ((0,) * 6)
    assert set(FIGURES["table"]) == set(TABLES) == set(PublishedTable.__args__)
    assert set(FIGURES["confidence"]) == set(CONFIDENCE)
    assert set(FIGURES["classes"]) == {"base", "novel", None}
    assert set(FIGURES["dataset"]) == {*DATASETS, MEAN}
    assert not FIGURES.select(*CELL, "source").is_duplicated().any()
    # A value, or at least a standard deviation.
    assert not (FIGURES["value"].is_null() & FIGURES["std"].is_null()).any()


def test_gains_of_table_1_recompute_from_its_accuracies() -> None:
    gains = FIGURES.filter(table="table-1", quantity="gain")
    assert sorted(gains["dataset"]) == sorted(DATASETS)
    for dataset, published in gains.select("dataset", "value").rows():
        before = value("table-1", dataset, "clip", "base", "accuracy")
        after = value("table-1", dataset, "maple", "base", "accuracy")
        assert gain(before, after) == pytest.approx(published, abs=0.005001), dataset


@pytest.mark.parametrize("table", ["table-1", "base-to-novel"])
def test_rows_of_means_recompute(table: str) -> None:
    cells = FIGURES.filter(
        pl.col("table") == table,
        pl.col("dataset").is_in(DATASETS),
        pl.col("method").is_in(["clip", "maple"]),
        ~pl.col("quantity").is_in(["gain", "harmonic_mean"]),
        pl.col("confidence") != "re-run",
    )
    means = cells.group_by("method", "classes", "quantity").agg(pl.col("value").mean(), n=pl.len())
    assert set(means["n"]) == {len(DATASETS)}
    assert len(means) == {"table-1": 10, "base-to-novel": 4}[table]
    for method, classes, quantity, mean, _ in means.rows():
        assert value(table, MEAN, method, classes, quantity) == pytest.approx(mean, abs=ROUNDING / 2), method


def test_harmonic_means_recompute() -> None:
    harmonic = FIGURES.filter(quantity="harmonic_mean")
    assert len(harmonic) == 2 * 12 + 8
    for row in harmonic.iter_rows(named=True):
        base, novel = (
            FIGURES.filter(
                table=row["table"],
                dataset=row["dataset"],
                method=row["method"],
                classes=classes,
                quantity="accuracy",
                source=row["source"],
            )["value"].item()
            for classes in ("base", "novel")
        )
        assert harmonic_mean(base, novel) == pytest.approx(row["value"], abs=ROUNDING), row


def test_groups_of_table_1_are_integers_over_all_classes() -> None:
    """What tells that the paper divides by all classes: the 18 cells of the three datasets of few classes."""
    n_classes = {"eurosat": 10, "dtd": 47, "oxford_pets": 37}
    of_group = {"eurosat": (5, 5), "dtd": (24, 23), "oxford_pets": (19, 18)}
    cells = FIGURES.filter(
        pl.col("table") == "table-1",
        pl.col("dataset").is_in(list(n_classes)),
        pl.col("quantity").is_in(["high", "high_to_low", "low_to_high"]),
    )
    assert len(cells) == 18
    rejected = set()
    for dataset, classes, published in cells.select("dataset", "classes", "value").rows():
        n, own = n_classes[dataset], of_group[dataset][classes == "novel"]
        assert abs(round(published * n) / n - published) <= 0.005001
        if abs(round(published * own) / own - published) > 0.005001:
            rejected.add(dataset)
    assert rejected == set(n_classes)


def test_the_saes_of_table_2_have_settings() -> None:
    settings = saes()
    assert set(settings["sae"]) == set(FIGURES.filter(table="table-2")["method"])
    assert len(settings) == 13
    [main] = settings.filter(sae="all-11").to_dicts()
    assert main == {
        "sae": "all-11",
        "model": "ViT-B-16",
        "layer": 11,
        "tokens": "all",
        "l1_coefficient": 8e-5,
        "expansion": 64,
        "ghost_gradients": True,
        "b_dec_init": "geometric_median",
    }
