"""Two objects, other styles and pairs of the shapes world: stable bytes, and labels that say what is shown."""

from __future__ import annotations

import hashlib
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from patchsae.pipeline.images.datasets.shapes import LABELS, Shapes, ShapesConfig
from patchsae.pipeline.shapes import world
from patchsae.pipeline.shapes.pairs import pair
from patchsae.pipeline.shapes.shifts import Shift, shifted

DIGEST = "a15a53a07f22bc3fd396d523d9263b9a2ed218de0cc713b65a1f0cb8403b693d"


def dataset(n: int = 40, split: str = "test", **fields: Any) -> Shapes:
    return Shapes(ShapesConfig(seed=5, splits={split: n}, **fields))


def images(shapes: Shapes) -> list[np.ndarray]:
    return [np.asarray(shapes.decode(shapes.read(record))).astype(int) for record in shapes.records()]


def test_the_bytes_are_the_ones_first_published() -> None:
    digest = hashlib.sha256()
    variants = [dataset(split="two_objects"), *(dataset(shift=shift) for shift in get_args(Shift))]
    for shapes in [*variants, *(dataset(pairs=label) for label in LABELS)]:
        for record in shapes.records():
            digest.update(shapes.read(record))
    assert digest.hexdigest() == DIGEST


def test_two_objects_differ_and_label_the_image_with_both_values() -> None:
    for label in LABELS:
        shapes = dataset(300, "two_objects", label=label)
        for index, record in enumerate(shapes.records()):
            plan = world.layout(5, "two_objects", index)
            if label == "background":
                assert (record.class_name, record.labels) == (plan.background, ())
                continue
            values = {placement.value(label) for placement in plan.placements}
            assert len(values) == 2 and {shapes.class_names()[i] for i in record.labels} == values
            assert record.class_name in values and record.label in record.labels


def test_both_of_two_objects_are_seen() -> None:
    for index in range(200):
        for one in world.render(5, "two_objects", index).objects:
            whole = world.draw(world.Layout(5, "test", 0, (one.placement,), "plain", (0.0,) * 8, ""))
            assert one.mask.sum() > 0.5 * whole.objects[0].mask.sum()


def test_a_style_changes_the_image_and_keeps_the_labels() -> None:
    plain = dataset(label="colour")
    for shift in get_args(Shift):
        other = dataset(label="colour", shift=shift)
        assert other.records() == plain.records()
        for a, b in zip(images(plain), images(other), strict=True):
            assert (a != b).any()
            if shift == "inverted":
                np.testing.assert_array_equal(a, 255 - b)


def test_blurring_is_the_rounded_mean_of_a_window() -> None:
    plan = world.layout(5, "test", 3)
    plain, blurred = world.draw(plan).image.astype(int), shifted(plan, "blurred")
    padded = np.pad(plain, ((2, 2), (2, 2), (0, 0)), mode="edge")
    for y, x in [(0, 0), (63, 10), (31, 40), (20, 63)]:
        expected = np.floor(padded[y : y + 5, x : x + 5].mean((0, 1)) + 0.5)
        np.testing.assert_array_equal(blurred[y, x], expected)


def test_an_outline_has_the_border_of_the_object_and_not_its_inside() -> None:
    plan = next(
        plan
        for plan in (world.layout(5, "test", index) for index in range(100))
        if (plan.value("shape"), plan.value("texture")) == ("square", "solid")
    )
    empty = world.draw(world.Layout(**{**vars(plan), "placements": ()})).image.astype(int)
    outlined = shifted(plan, "outlined").astype(int)
    [one] = world.draw(plan).objects
    changed = np.abs(outlined - empty).max(axis=2) > 0
    assert not changed[one.mask == 0].any()
    y, x = (np.argwhere(one.mask > 0).mean(axis=0)).astype(int)
    assert not changed[y - 4 : y + 5, x - 4 : x + 5].any()
    assert 0.1 < changed.sum() / (one.mask > 0).sum() < 0.7


@pytest.mark.parametrize("attribute", LABELS)
@pytest.mark.parametrize("split", ["test", "downstream_train", "two_objects"])
def test_a_pair_differs_in_one_attribute(attribute: str, split: str) -> None:
    for index in range(60):
        one, other = pair(5, split, index, attribute)
        assert (one, other) == pair(5, split, index, attribute)
        for name in (*LABELS, "size"):
            assert (one.values(name) == other.values(name)) == (name != attribute)
        assert len(set(other.values(attribute))) == len(other.placements) or attribute == "background"
        assert one.value(attribute) in one.caption and other.value(attribute) in other.caption
        first, second = world.draw(one), world.draw(other)
        changed = np.abs(first.image.astype(int) - second.image).max(axis=2) > 0
        assert changed.any()
        # Noise included, nothing changes elsewhere.
        touched = np.maximum(first.objects[0].mask, second.objects[0].mask)
        if attribute == "background":
            whole = sum(one.mask for one in first.objects)
            assert not changed[np.asarray(whole) > 0.999].any()
        else:
            assert not changed[touched == 0].any()


def test_pairs_lie_side_by_side_in_the_dataset() -> None:
    shapes = dataset(label="shape", pairs="colour")
    colours = [shapes.attribute_labels("colour", record.source) for record in shapes.records()]
    labels = [record.label for record in shapes.records()]
    assert labels[0::2] == labels[1::2]
    assert all(a != b for a, b in zip(colours[0::2], colours[1::2], strict=True))
    assert len({image.tobytes() for image in images(shapes)}) == len(labels)


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(ValidationError, match="41 images of 'test', which are no whole pairs; ask for 42"):
        dataset(41, pairs="shape")


def test_options_that_are_not_used_leave_keys_as_they_were() -> None:
    assert set(dataset().config.key_config()) == {"kind", "on_corrupt", "seed", "splits", "label"}
    assert dataset(shift="blurred").config.key_config()["shift"] == "blurred"


def test_attributes_are_those_that_are_no_label() -> None:
    shapes = dataset(label="colour")
    assert list(shapes.config.attributes()) == ["shape", "texture", "background"]
    for record in shapes.records():
        plan = world.layout(5, "test", int(record.source.split("/")[1]))
        for name in shapes.config.attributes():
            [label] = shapes.attribute_labels(name, record.source)
            assert shapes.attribute_values(name)[label] == plan.value(name)
