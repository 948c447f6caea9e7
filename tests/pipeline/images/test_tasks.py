"""`base` and `novel`: the halves of a dataset's classes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from patchsae.pipeline.core.prediction import Source, Upstream
from patchsae.pipeline.evaluations.evaluation import ImagesConfig
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.images.tables import (
    expected_rows,
    expected_task_classes,
    rows_of,
    task_classes,
)
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.sae_inputs import index

# Class 2 has no image, so that the classes with images are 0, 1, 3, 4, 5: three of them are base.
NAMES = ["a", "base", "nothing", "d", "e", "f"]
LABELS = [0, 1, 3, 4, 5, 0, 5, 4, 3, 1, 1, 0]
SPLITS = ["train"] * 6 + ["test"] * 6


@pytest.fixture
def images(store: Store) -> Artifact:
    return index(store, LABELS, SPLITS, NAMES)


def test_the_first_half_of_the_classes_with_images_is_base(images: Artifact) -> None:
    assert task_classes(images, "base").tolist() == [0, 1, 3]
    assert task_classes(images, "novel").tolist() == [4, 5]
    assert task_classes(images, None).tolist() == task_classes(images, ("e", 0)).tolist() == list(range(6))
    assert rows_of(images, "train", "base").tolist() == [0, 1, 2, 5]
    assert rows_of(images, "test", "novel").tolist() == [6, 7]
    assert rows_of(images, "test", "base", limit=2).tolist() == [8, 9]
    halves = [rows_of(images, split, half) for split in ("train", "test") for half in ("base", "novel")]
    assert np.sort(np.concatenate(halves)).tolist() == list(range(12))


def test_a_class_called_base_is_a_list_of_one(images: Artifact) -> None:
    assert rows_of(images, "test", ("base",)).tolist() == [9, 10]
    assert ImagesConfig.model_validate({"classes": ["base"]}).classes == ("base",)
    assert ImagesConfig.model_validate({"classes": "base"}).classes == "base"
    keys = [ImagesConfig.model_validate({"classes": c}).key_config()["classes"] for c in ("base", ["base"])]
    assert keys == ["base", ["base"]]


@pytest.mark.parametrize("classes", ["all", 3, [], [1.5], {"base": 1}])
def test_what_is_no_choice_of_classes_is_refused_in_one_sentence(classes: object) -> None:
    with pytest.raises(ValidationError, match="write base, novel, or a list") as refused:
        ImagesConfig.model_validate({"classes": classes})
    assert len(refused.value.errors()) == 1
    text = """
name: e
datasets: {d: {kind: digits}}
backbones: {b: {kind: shapes_clip}}
saes: {s: {kind: topk, dataset: d, backbone: b}}
evaluations: {m: {kind: statistics, sae: s, classes: bose}}
"""
    with pytest.raises(UserError, match=r"`evaluations.m.classes` is 'bose': is no choice of classes"):
        parse(text, "e.yaml")


def test_one_class_has_no_halves(store: Store) -> None:
    one = index(store, [1, 1, 1], ["train", "train", "test"], ["empty", "cup"])
    source = Upstream(source=Source("x", splits={"test": 3}, class_names=["cup"]))
    for refused in (
        lambda: rows_of(one, "test", "base"),
        lambda: expected_rows(Upstream(one), "test", "novel"),
        lambda: expected_task_classes(source, "novel"),
        lambda: expected_rows(source, "test", "novel"),
    ):
        with pytest.raises(
            UserError, match=r"images of one class only \(`cup`\), and base and novel are two"
        ):
            refused()


def test_a_class_of_a_half_without_an_image_in_the_split_is_named(store: Store) -> None:
    images = index(store, [0, 1, 2, 3, 0, 3], ["train"] * 4 + ["test"] * 2, ["a", "b", "c", "d"])
    assert rows_of(images, "train", "base").tolist() == [0, 1]
    for refused in (rows_of, lambda *asked: expected_rows(Upstream(images), *asked[1:])):
        with pytest.raises(UserError, match="`base`: the class `b` has no image in the split `test`; choose"):
            refused(images, "test", "base")
        with pytest.raises(UserError, match="the class `c` has no image in the split `test`"):
            refused(images, "test", "novel")
    images = index(store, [0, 1, 2, 0], ["train"] * 3 + ["val"], ["a", "b", "c"])
    with pytest.raises(UserError, match="`c` has no image in the split `val`; choose"):
        rows_of(images, "val", "novel")


def test_a_plan_knows_the_halves_before_there_is_an_index(images: Artifact) -> None:
    source = Upstream(source=Source("x", splits={"test": 70}, class_names=list("abcdefg")))
    found = [expected_task_classes(source, classes) for classes in ("base", "novel", None, ("c",))]
    assert [list(one) for one in found if one is not None] == [
        [0, 1, 2, 3],
        [4, 5, 6],
        [*range(7)],
        [*range(7)],
    ]
    assert [expected_rows(source, "test", half) for half in ("base", "novel")] == [40, 30]
    assert expected_task_classes(Upstream(), "base") is None
    # With an index the number is exact.
    assert expected_rows(Upstream(images), "test", "novel") == 2
    assert expected_rows(Upstream(images), "test", "base", 3) == 3
