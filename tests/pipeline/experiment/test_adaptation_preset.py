"""The preset `adaptation`, made small: adapters learn, and what the tables say of that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import load
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.results.tables import Catalog
from patchsae.storage.store import Store

SMALL = (
    "datasets.world.splits={train: 300, test: 60}",
    "datasets.digits.n_images=400",
    "datasets.colours.splits={train: 260, test: 100}",
    "saes.sae.n_steps=150",
    "saes.sae.batch_size=1024",
    "adaptation.adapters=['tuned-dataset[cd]*-seed1']",
    "adaptation.n_bootstrap=20",
)
FIGURES = Path(__file__).parents[3] / "docs" / "figures"
KEPT = ("tuned-datasetcolours-seed1", "tuned-datasetdigits-seed1")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """The table `adaptation` of two fine-tuned models, on a task of pretraining and on digits."""
    whole = load("adaptation", SMALL)
    few = {
        "adapters": {name: whole.adapters[name] for name in KEPT},
        "sweeps": {},
        "evaluations": {"adaptation": whole.evaluations["adaptation"]},
        "datasets": {name: whole.datasets[name] for name in ("world", "colours", "digits")},
    }
    store = Store(tmp_path_factory.mktemp("adaptation") / "a store")
    run(work_on(store, whole.model_copy(update=few)), replace(Runtime(), checkpoint_seconds=1e9))
    return Catalog(store).scan("adaptation").collect()


def row(found: pl.DataFrame, task: str, classes: str) -> dict[str, float]:
    [one] = found.filter(
        pl.col("adapter") == f"tuned-dataset{task}-seed1", pl.col("classes") == classes
    ).iter_rows(named=True)
    return one


def test_what_has_no_word_is_learned(found: pl.DataFrame) -> None:
    digits = row(found, "digits", "base")
    assert digits["accuracy_before"] < 0.4  # chance is 0.2
    assert digits["accuracy_after"] > digits["accuracy_before"] + 0.3


def test_what_was_known_stays_known(found: pl.DataFrame) -> None:
    colours = row(found, "colours", "base")
    assert colours["accuracy_before"] > 0.97 and colours["accuracy_after"] > 0.9


def test_groups_and_changes_are_those_of_both_tasks(found: pl.DataFrame) -> None:
    assert found.height == 2 * 3 and not found["high"].is_null().any()
    assert (found["change"] > 0).all()
    for task in ("colours", "digits"):
        one = row(found, task, "base")
        assert one["high"] * one["n_classes"] == pytest.approx(one["high_per_class"] * one["n_group"])


def test_the_figure_shows_every_task_and_method_of_the_preset() -> None:
    experiment = load("adaptation")
    # Matplotlib, with which it is drawn, is not installed.
    figure = (FIGURES / "adaptation.py").read_text()
    kinds = {config.kind for config in experiment.adapters.values()}  # type: ignore[attr-defined]
    assert all(f'"{name}": ' in figure for name in {*kinds, *experiment.datasets} - {"world"})
    assert {config.seed for config in experiment.adapters.values()} == {1, 2, 3}
    assert (FIGURES / "adaptation.png").is_file()
