"""CoOp's data sets: every layout is read as CoOp reads it, and a data set that is not as it should be is refused."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from patchsae.pipeline.core.open_clip_data import imagenet_class_names
from patchsae.pipeline.images.coop import imagenet
from patchsae.pipeline.images.coop.facts import FACTS, Name
from patchsae.pipeline.images.datasets.coop import CoopConfig
from patchsae.storage.errors import UserError
from tests.support.coop_data import CLASSES, IMAGENET_NAMES, PER_CLASS, rewrite, tiny

NAMES: tuple[Name, ...] = get_args(Name)


def config(root: Path, name: Name) -> CoopConfig:
    return CoopConfig(name=name, root=str(root))


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_is_read(name: Name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tiny(monkeypatch, tmp_path, name)
    dataset = config(tmp_path, name).build()
    records = dataset.records()
    source = config(tmp_path, name).source()
    assert source.n_images == len(records) == facts.n_images and source.splits == facts.splits
    for split, n in facts.splits.items():
        labels = [record.label for record in records if record.split == split]
        assert sorted(labels) == sorted(list(range(3)) * (n // 3))
    for record in records:
        path = config(tmp_path, name).file_of(record.source)
        assert path.is_file() and path.is_relative_to(tmp_path / facts.folder)
        assert dataset.decode(dataset.read(record)).size == (9, 8)
        assert record.class_name == dataset.class_names()[record.label]
    expected = IMAGENET_NAMES if "imagenet" in name else CLASSES.get(name, ["one", "two_words", "three"])
    assert dataset.class_names() == [one.replace("_", " ") for one in expected]
    assert not dataset.remarks()


def test_the_table_of_facts_is_that_of_the_benchmark() -> None:
    """Numbers of spec 7.4: (base classes, novel classes, images)."""
    halves = {
        name: (math.ceil(facts.n_classes / 2), facts.n_classes // 2, facts.n_images)
        for name, facts in FACTS.items()
    }
    assert halves == {
        "imagenet": (500, 500, 1_331_167),
        "caltech101": (50, 50, 8_242),
        "oxford_pets": (19, 18, 7_349),
        "stanford_cars": (98, 98, 16_185),
        "oxford_flowers": (51, 51, 8_189),
        "food101": (51, 50, 101_000),
        "fgvc_aircraft": (50, 50, 10_000),
        "sun397": (199, 198, 39_700),
        "dtd": (24, 23, 5_640),
        "eurosat": (5, 5, 27_000),
        "ucf101": (51, 50, 13_320),
        "imagenetv2": (500, 500, 10_000),
        "imagenet_sketch": (500, 500, 50_889),
        "imagenet_a": (100, 100, 7_500),
        "imagenet_r": (100, 100, 30_000),
    }
    assert tuple(FACTS) == NAMES
    assert all(facts.prompt.count("{}") == 1 for facts in FACTS.values())
    assert all(bool(facts.split_file) == (facts.layout == "split_file") for facts in FACTS.values())
    assert [name for name, facts in FACTS.items() if not facts.archive] == ["imagenet"]


def test_original_names_of_classes_become_those_of_the_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A split file made by CoOp from the folders has the new names; one made by others may have the folders'."""
    tiny(monkeypatch, tmp_path, "eurosat")
    raw = {"Annual Crop Land": "AnnualCrop", "Highway or Road": "Highway"}

    def back(content: dict[str, Any]) -> dict[str, Any]:
        return {split: [[s, y, raw.get(c, c)] for s, y, c in rows] for split, rows in content.items()}

    before = config(tmp_path, "eurosat").build().class_names()
    rewrite(tmp_path, "eurosat", back)
    assert config(tmp_path, "eurosat").build().class_names() == before == CLASSES["eurosat"]


def test_imagenet_s_names_are_open_clip_s_where_coop_s_file_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch, tmp_path, "imagenet_a")
    own = tmp_path / "imagenet-adversarial" / "classnames.txt"
    ids, shared = own.read_text(), tmp_path / "imagenet" / "classnames.txt"
    own.unlink()
    dataset = config(tmp_path, "imagenet_a").build()
    assert dataset.class_names() == imagenet_class_names()[:3]
    assert [*dataset.remarks()] == [
        f"class names are open_clip's, since {own} is not there; some differ from those of CoOp, with which published "
        "figures were made"
    ]
    assert imagenet._wordnet_ids() == sorted(imagenet._wordnet_ids()) and len(imagenet._wordnet_ids()) == 1000
    # That of ImageNet serves its variants too.
    shared.parent.mkdir()
    shared.write_text(ids.replace("tench", "a tench of CoOp"))
    dataset = config(tmp_path, "imagenet_a").build()
    assert dataset.class_names()[0] == "a tench of CoOp" and not dataset.remarks()


def test_a_class_keeps_its_number_where_a_split_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tiny(monkeypatch, tmp_path, "imagenet")
    for image in (tmp_path / "imagenet" / "images" / "train" / "n01440764").iterdir():
        image.unlink()
    image.parent.rmdir()
    assert facts.n_classes == 3
    assert "1 class has no image in the split `train`, such as `tench`" in refused(tmp_path, "imagenet")


def refused(root: Path, name: Name) -> str:
    """The sentence with which the images are refused."""
    with pytest.raises(UserError) as error:
        config(root, name).source()
    told = str(error.value)
    assert "\n" not in told and told.endswith(".")
    return told


def test_missing_images_are_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tiny(monkeypatch, tmp_path, "oxford_pets")
    gone = sorted((tmp_path / "oxford_pets" / "images" / "train_1").iterdir())
    gone += sorted((tmp_path / "oxford_pets" / "images" / "test_0").iterdir())
    for path in gone:
        path.unlink()
    names = sorted(path.relative_to(tmp_path).as_posix() for path in gone)
    assert refused(tmp_path, "oxford_pets") == (
        f"{tmp_path}/oxford_pets/{facts.split_file}: names 7 images that are not there: {', '.join(names[:5])}, ... (of "
        f"27, below {tmp_path}); get them again."
    )


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (
            {"n_classes": 37},
            "has 3 classes, and OxfordPets has 37; get it again, or use the kind image_folder",
        ),
        ({"n_classes": 2}, "has 3 classes, and OxfordPets has 2"),
        (
            {"splits": {"train": 13, "val": 6, "test": 9}},
            "has 12 images in the split `train`, and OxfordPets has 13",
        ),
        (
            {"splits": {"train": 12, "val": 6, "test": 8}},
            "has 9 images in the split `test`, and OxfordPets has 8",
        ),
    ],
)
def test_other_numbers_of_classes_and_images_are_refused(
    known: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch, tmp_path, "oxford_pets", **known)
    assert sentence in refused(tmp_path, "oxford_pets")


def test_other_numbers_of_images_are_refused_in_folders_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("imagenet_r", "fgvc_aircraft"):
        facts = tiny(monkeypatch, tmp_path, name)  # type: ignore[arg-type]
        more = replace(facts, splits={**facts.splits, "test": 10})
        monkeypatch.setitem(FACTS, name, more)  # type: ignore[arg-type]
        assert "has 9 images in the split `test`, and" in refused(tmp_path, name)  # type: ignore[arg-type]


def _without(label: int) -> Any:
    return lambda content: {**content, "test": [row for row in content["test"] if row[1] != label]}


def _first(row: Any) -> Any:
    return lambda content: {**content, "val": [row, *content["val"][1:]]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without(2), "1 class has no image in the split `test`, such as `pug`; get it again."),
        (
            _first(["../../other.jpg", 0, "abyssinian"]),
            "names the image '../../other.jpg', which is not below",
        ),
        (_first(["/etc/passwd", 0, "abyssinian"]), "names the image '/etc/passwd', which is not below"),
        (
            _first(["a.jpg", -1, "abyssinian"]),
            "entry 0 of `val` is not [path, number of the class, name of the class]",
        ),
        (_first(["a.jpg", 0]), "entry 0 of `val` is not [path, number"),
        (
            _first(["a.jpg", 0, "siamese"]),
            "class 0 is called `abyssinian` and `siamese`; get the file again.",
        ),
        (_first(["train_0/train0000.jpg", 0, "abyssinian"]), "train0000.jpg 2 times; get the file again."),
        (_first(["a.jpg", 7, "seven"]), "has 4 classes, and OxfordPets has 3"),
        (lambda content: {**content, "train": None}, "has no list `train` of images"),
        (lambda content: [content], "has no list `train` of images"),
        (
            lambda content: {s: [[p, y * 2, c] for p, y, c in rows] for s, rows in content.items()},
            "its classes are not numbered from 0 to 2",
        ),
    ],
)
def test_a_split_file_that_is_none_is_refused(
    change: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch, tmp_path, "oxford_pets")
    rewrite(tmp_path, "oxford_pets", change)
    told = refused(tmp_path, "oxford_pets")
    assert sentence in told and told.startswith(f"{tmp_path}/oxford_pets/split_zhou_OxfordPets.json")


def test_missing_and_broken_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(tmp_path, "dtd") == (
        f"{tmp_path}/dtd: no such folder, and DTD belongs there; `patchsae data dtd --root {tmp_path}` says where to get "
        "it."
    )
    tiny(monkeypatch, tmp_path, "dtd")
    split = tmp_path / "dtd" / FACTS["dtd"].split_file
    split.write_text('{"train": [')
    assert f"{split}: is no JSON" in refused(tmp_path, "dtd")
    split.unlink()
    assert refused(tmp_path, "dtd") == f"{split}: is missing; `patchsae data` says where to get it."
    tiny(monkeypatch, tmp_path, "fgvc_aircraft")
    lines = tmp_path / "fgvc_aircraft" / "images_variant_val.txt"
    lines.write_text(lines.read_text().replace("DR-400", "DR-500", 1))
    assert "DR-500` names no class of variants.txt" in refused(tmp_path, "fgvc_aircraft")
    tiny(monkeypatch, tmp_path, "imagenet")
    val = tmp_path / "imagenet" / "images" / "val"
    for folder in list(val.iterdir()):
        for image in folder.iterdir():
            image.rename(val / image.name)
        folder.rmdir()
    assert "has images but no class folders; sort the images into folders" in refused(tmp_path, "imagenet")
    tiny(monkeypatch, tmp_path, "imagenet_sketch")
    (tmp_path / "imagenet-sketch" / "images" / "n99999999").mkdir()
    assert "n99999999: is the folder of no class in classnames.txt" in refused(tmp_path, "imagenet_sketch")
    (tmp_path / "imagenet-sketch" / "classnames.txt").write_text("tench\n")
    assert "the line `tench` is not like `n01440764 tench`" in refused(tmp_path, "imagenet_sketch")


def test_a_link_to_data_elsewhere_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CoOp's DATASETS.md recommends for data that is there already."""
    tiny(monkeypatch, tmp_path / "elsewhere", "caltech101")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "caltech-101").symlink_to(tmp_path / "elsewhere" / "caltech-101")
    source = config(tmp_path / "data", "caltech101").source()
    assert source.n_images == 3 * sum(PER_CLASS.values())
    assert source.fingerprint != config(tmp_path / "elsewhere", "caltech101").source().fingerprint


def test_a_split_that_is_left_out_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, tmp_path, "imagenet")
    shutil.rmtree(tmp_path / "imagenet" / "images" / "train")
    assert "images/train: no such folder" in refused(tmp_path, "imagenet")
    source = CoopConfig(name="imagenet", root=str(tmp_path), splits=("test",)).source()
    assert source.splits == {"test": 9} and source.class_names == IMAGENET_NAMES


def test_splits_and_training_images_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tiny(monkeypatch, tmp_path, "oxford_pets")

    def chosen(**fields: Any) -> CoopConfig:
        return CoopConfig(name="oxford_pets", root=str(tmp_path), **fields)

    everything = chosen().build().records()
    for fields, splits in (
        ({"splits": ["test"]}, {"test": 9}),
        ({"splits": ["test", "train", "test"]}, {"train": 12, "test": 9}),
        ({"train_per_class": 3}, {"train": 9, "val": 6, "test": 9}),
        ({"train_per_class": 3, "splits": ["train"]}, {"train": 9}),
        ({"train_per_class": 100}, facts.splits),
    ):
        source, dataset = chosen(**fields).source(), chosen(**fields).build()
        assert dict(source.splits or {}) == splits and source.n_images == sum(splits.values())
        assert set(dataset.records()) <= set(everything) and len(dataset.records()) == sum(splits.values())
        assert dataset.class_names() == chosen().build().class_names()
        known = chosen(**fields).expected_splits()
        assert known is None if "train_per_class" in fields else known == splits
    # Fewer images of a class are the first part of more.
    two, three = (set(chosen(train_per_class=n, splits=["train"]).build().records()) for n in (2, 3))
    assert two < three
    assert chosen(splits=["test"]).source().fingerprint != chosen().source().fingerprint
    with pytest.raises(
        ValidationError, match="`splits` names `train`, and imagenet_a has test; leave it out"
    ):
        CoopConfig(name="imagenet_a", root="x", splits=("train",))
