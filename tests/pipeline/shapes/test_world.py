"""The shapes world: stable bytes, exact ground truth, withheld values, speed."""

import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

from patchsae.pipeline.images.datasets.shapes import Shapes, ShapesConfig
from patchsae.pipeline.shapes import world
from patchsae.pipeline.shapes.world import TEMPLATES

GOLDEN_DIGEST = "f5013048781c48e47810cf382782e25e2e6a56005619010c9303e7c981d4c7d8"


def test_an_image_is_a_pure_function_of_seed_split_and_index() -> None:
    first = world.render(3, "pretrain", 17)
    world.render(3, "pretrain", 18)
    again = world.render(3, "pretrain", 17)
    np.testing.assert_array_equal(first.image, again.image)
    assert first.caption == again.caption
    images = {
        world.render(*key).image.tobytes()
        for key in [(3, "pretrain", 17), (4, "pretrain", 17), (3, "heldout", 17), (3, "pretrain", 18)]
    }
    assert len(images) == 4


def test_the_bytes_are_the_ones_first_published() -> None:
    digest = hashlib.sha256()
    for split in world.SPLITS[:6]:
        for index in range(50):
            scene = world.render(0, split, index)
            digest.update(scene.image.tobytes() + scene.caption.encode())
    assert digest.hexdigest() == GOLDEN_DIGEST


@pytest.mark.parametrize("split", world.SPLITS)
def test_withheld_values_appear_downstream_only(split: str) -> None:
    plans = [world.layout(0, split, index) for index in range(600)]
    for attribute in ("shape", "texture", "colour", "size"):
        if (attribute, split) == ("size", "two_objects"):
            continue
        seen = {p.value(attribute) for plan in plans for p in plan.placements}
        assert seen == set(world.values_of(split)[attribute])
    downstream = split.startswith("downstream")
    assert ({"heart", "bolt"} <= set(world.values_of(split)["shape"])) == downstream
    n_objects = {len(plan.placements) for plan in plans}
    several = {"pretrain": {1, 2, 3}, "heldout": {1, 2, 3}, "two_objects": {2}}
    assert n_objects == several.get(split, {1})


def test_token_masks_are_the_shares_of_each_patch() -> None:
    for index in range(60):
        scene = world.render(0, "pretrain", index)
        masks = world.token_masks(scene)
        assert set(masks) == {f"{a}={v}" for a, values in world.VALUES.items() for v in values}
        for mask in masks.values():
            assert mask.shape == (8, 8)
            assert mask.dtype == np.float32
        objects = sum(masks[f"shape={v}"] for v in world.VALUES["shape"])
        background = sum(masks[f"background={v}"] for v in world.VALUES["background"])
        np.testing.assert_allclose(objects + background, 1, atol=1e-5)
        for attribute in ("colour", "texture", "size"):
            of_attribute = sum(masks[f"{attribute}={v}"] for v in world.VALUES[attribute])
            np.testing.assert_allclose(of_attribute, objects, atol=1e-5)


def test_masks_lie_where_the_object_is_drawn() -> None:
    for index in range(200):
        scene = world.render(0, "train", index)
        (obj,) = scene.objects
        if obj.value("texture") == "solid" and obj.value("colour") == "red":
            red = (scene.image[..., 0] > 180) & (scene.image[..., 1] < 80)
            np.testing.assert_array_equal(red[obj.mask == 1], True)
            np.testing.assert_array_equal(red[obj.mask == 0], False)
            return
    raise AssertionError("no solid red object among 200 images")


def test_every_object_stays_visible() -> None:
    shares = [
        obj.mask.sum() / (0.15 * obj.placement.diameter**2)
        for index in range(400)
        for obj in world.render(0, "heldout", index).objects
    ]
    assert np.mean(np.asarray(shares) > 1) > 0.98


def test_the_caption_names_what_the_image_shows() -> None:
    for index in range(100):
        scene = world.render(1, "heldout", index)
        for obj in scene.objects:
            noun = " ".join(obj.value(a) for a in ("size", "colour", "texture", "shape"))
            assert noun in scene.caption
        assert scene.caption.endswith(f"on a {scene.background} background")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of pretrain, heldout"):
        world.render(0, "validation", 0)


def test_the_dataset_reads_labels_and_decodes() -> None:
    dataset = Shapes(ShapesConfig(seed=5, splits={"train": 6, "test": 3}, label="texture"))
    records = dataset.records()
    assert [r.source for r in records] == [f"train/{i}" for i in range(6)] + [f"test/{i}" for i in range(3)]
    assert len({r.source for r in records}) == len(records)
    assert dataset.class_names() == list(world.TEXTURES)
    for record in records:
        split, index = record.source.split("/")
        scene = world.render(5, split, int(index))
        assert record.class_name == scene.objects[0].value("texture")
        assert dataset.class_names()[record.label] == record.class_name
        image = dataset.decode(dataset.read(record))
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), scene.image)
    assert dataset.config.templates() == list(TEMPLATES["texture"])


def test_label_ids_do_not_depend_on_the_splits() -> None:
    small = Shapes(ShapesConfig(seed=0, splits={"train": 1})).class_names()
    large = Shapes(ShapesConfig(seed=0, splits={"train": 1, "downstream_test": 1})).class_names()
    assert large == [*small, "heart", "bolt"]


@pytest.mark.parametrize(
    ("splits", "message"),
    [({}, "at least one of"), ({"val": 3}, "choose from pretrain"), ({"train": 0}, "at least 1")],
)
def test_a_bad_config_says_what_to_do(splits: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ShapesConfig(seed=0, splits=splits)


def test_decoding_refuses_other_bytes() -> None:
    with pytest.raises(OSError, match="12288 bytes"):
        Shapes(ShapesConfig(seed=0, splits={"train": 1})).decode(b"x")
