"""The draw of few images per class: nested, the same for any other classes, and refused where a class has too few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from patchsae.pipeline.core.prediction import Source, Upstream
from patchsae.pipeline.experiment.dag import Dag
from patchsae.pipeline.images import few_shot
from patchsae.pipeline.images.datasets.digits import DigitsConfig
from patchsae.pipeline.images.datasets.shapes import ShapesConfig
from patchsae.pipeline.images.few_shot import STAGE, FewShotConfig, rows_of_draw
from patchsae.pipeline.images.tables import Classes, labels_of, rows_of
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.nodes import run_all
from tests.support.sae_inputs import index, run

N_CLASSES = 5
NAMES = ["a", "b", "c", "d", "e"]


def world(store: Store, n_train: int = 90, seed: int = 0) -> Artifact:
    rng = np.random.default_rng(seed)
    labels = [*rng.permutation(np.arange(n_train) % N_CLASSES).tolist(), *(i % N_CLASSES for i in range(30))]
    return index(store, labels, ["train"] * n_train + ["val"] * 12 + ["test"] * 18, NAMES)


def drawn(store: Store, images: Artifact, **config: Any) -> pl.DataFrame:
    return (
        run(store, STAGE, FewShotConfig(**config), {"images": images})
        .scan("few_shot")
        .collect()
        .drop("artifact")
    )


def test_a_draw_has_so_many_images_of_each_class(store: Store) -> None:
    images = world(store)
    artifact = run(store, STAGE, FewShotConfig(shots=6), {"images": images})
    rows = rows_of_draw(artifact)
    assert np.bincount(labels_of(images)[rows]).tolist() == [6] * N_CLASSES
    assert np.isin(rows, rows_of(images, "train")).all() and (np.diff(rows) > 0).all()
    table = artifact.scan("few_shot").collect()
    # Of the 12 images to validate on, two classes have three and the others two.
    of_val = table.filter(split="val")
    assert of_val.group_by("label").len().sort("label")["len"].to_list() == [3, 3, 2, 2, 2]
    assert np.isin(rows_of_draw(artifact, "val"), rows_of(images, "val")).all()
    joined = table.join(images.scan("images").collect(), on="image", suffix="_of_images")
    for column in ("source", "label", "class_name"):
        assert joined[column].equals(joined[f"{column}_of_images"], check_names=False)
    assert artifact.manifest.summary | {"draw": ""} == {
        "n_images": 30,
        "n_val": 12,
        "n_classes": 5,
        "draw": "",
    }


def test_smaller_draws_are_the_first_part_of_larger_ones(store: Store) -> None:
    images = world(store)
    largest = drawn(store, images, shots=16)
    everything = drawn(store, images, shots=None)
    assert everything.filter(split="train").height == 90 and everything.filter(split="val").height == 12
    for shots in (1, 2, 4, 8):
        smaller = drawn(store, images, shots=shots)
        for larger in (largest, everything):
            assert smaller.filter(split="train").equals(
                larger.filter(pl.col("shot") < shots, pl.col("split") == "train")
            )
        assert (smaller.filter(split="val").group_by("label").len()["len"] <= min(shots, 4)).all()


@pytest.mark.parametrize("classes", ["base", "novel", ("b",), (4, "a")])
def test_a_draw_does_not_depend_on_the_other_classes(store: Store, classes: Classes) -> None:
    images = world(store)
    ids = {"base": [0, 1, 2], "novel": [3, 4], ("b",): [1]}.get(classes, [0, 4])  # type: ignore[call-overload]
    everything = drawn(store, images, shots=3, seed=7)
    assert drawn(store, images, shots=3, seed=7, classes=classes).equals(
        everything.filter(pl.col("label").is_in(ids))
    )


def test_the_draw_is_a_function_of_seed_and_name(store: Store) -> None:
    """In another data set that has other images too, those of both are in the same order."""
    few, many = (
        drawn(store, index(store, labels, ["train"] * len(labels), ["x", "y"]), shots=None, seed=2)
        for labels in ([0] * 10, [0] * 40)
    )
    common = many.filter(pl.col("source").is_in(few["source"].to_list()))
    assert common["source"].to_list() == few["source"].to_list() != sorted(few["source"])
    other = drawn(store, index(store, [0] * 10, ["train"] * 10, ["x", "y"]), shots=None, seed=3)
    assert other["source"].to_list() != few["source"].to_list()
    # What it was when the stage was first released.
    assert few["source"].to_list()[:3] == ["7.png", "4.png", "9.png"]


def test_every_image_is_as_likely_as_any_other(store: Store) -> None:
    images = index(store, [0] * 20, ["train"] * 20, ["x"])
    counts: np.ndarray = np.zeros(20, np.int64)
    for seed in range(200):
        drawn = few_shot._draw(FewShotConfig(seed=seed), images, np.arange(20), 5)
        counts[drawn["image"].to_numpy()] += 1
    # 200 draws of 5 of 20: 50 each, with a standard deviation of 6.
    assert counts.sum() == 1000 and counts.min() > 25 and counts.max() < 75


def refused(store: Store, images: Artifact, **config: Any) -> str:
    """The sentence with which the run refuses a draw, which is that of the plan."""
    told = []
    for attempt in (
        lambda: drawn(store, images, **config),
        lambda: STAGE.predict(FewShotConfig(**config), {"images": Upstream(images)}),  # type: ignore[misc]
    ):
        with pytest.raises(UserError) as error:
            attempt()
        told.append(str(error.value))
    assert told[0] == told[1]
    return told[0]


def test_a_class_with_too_few_images_is_named(store: Store) -> None:
    images = index(store, [0] * 5 + [1] * 3 + [2] * 9, ["train"] * 16 + ["test"], ["a", "b", "c"])
    assert refused(store, images, shots=4) == (
        "few_shot: the class `b` has 3 images in the split `train`, fewer than shots: 4; set shots: 3, or list other "
        "`classes`."
    )
    assert (
        "`b` has 3 images in the split `train`, fewer than shots: 8 (so have 1 other class); set"
        in refused(store, images, shots=8)
    )
    assert (
        "`a` has 0 images in the split `test`, fewer than shots: 1 (so have 1 other class); give it"
        in refused(store, images, shots=1, split="test")
    )
    assert drawn(store, images, shots=4, classes=("a", "c")).height == 8
    assert "no class `z`" in refused(store, images, classes=("z",))
    assert "the class `a` has no image in the split `test`" in refused(
        store, images, classes="base", split="test"
    )


def test_images_of_several_classes_are_refused(store: Store) -> None:
    dag = Dag({"shapes": ShapesConfig(seed=1, splits={"two_objects": 8})}, {}, {}, {})
    dag.index("shapes")
    images = run_all(store, dag.nodes.values())["index/shapes"]
    assert "8 images of the split `two_objects` are of several classes" in refused(
        store, images, split="two_objects", shots=None
    )


def addresses(settings: Sequence[tuple[Classes | None, int | None, int, str]]) -> list[str]:
    dag = Dag({"pets": DigitsConfig()}, {}, {}, {})
    return [dag.few_shot("pets", *one).removeprefix("few_shot/") for one in settings]


def test_draws_have_names() -> None:
    assert addresses([("base", 16, 1, "train"), (None, 4, 2, "train"), ("novel", None, 1, "other")]) == [
        "pets-base-16-seed1",
        "pets-4-seed2",
        "pets-novel-all-seed1-other",
    ]
    lists: list[Classes] = [("base",), ("a", 1), (1, "a")]
    found = addresses([(classes, 16, 1, "train") for classes in lists])
    assert len({*found, "pets-base-16-seed1"}) == 4


@pytest.mark.parametrize("config", [{"shots": 3}, {"shots": 3, "classes": "base"}, {"shots": None}])
def test_a_plan_foresees_the_draw(store: Store, config: dict[str, Any]) -> None:
    images = world(store)
    summary = run(store, STAGE, FewShotConfig(**config), {"images": images}).manifest.summary
    source = Source("x", splits={"train": 90, "val": 12, "test": 18}, class_names=NAMES)
    for upstream in (Upstream(images), Upstream(source=source)):
        assert STAGE.predict is not None
        facts = STAGE.predict(FewShotConfig(**config), {"images": upstream}).facts
        exact = upstream.artifact is not None or config["shots"] is not None
        assert (facts["n_images"] == summary["n_images"]) or not exact
        assert facts["n_classes"] == summary["n_classes"]
