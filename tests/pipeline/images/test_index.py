from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.images import index
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.datasets.digits import DigitsConfig
from patchsae.pipeline.images.datasets.image_folder import ImageFolderConfig
from patchsae.pipeline.images.datasets.shapes import ShapesConfig
from patchsae.pipeline.images.index import content_identity
from patchsae.pipeline.images.tables import class_names_of, label_sets_of, rows_of, split_range
from patchsae.pipeline.shapes import world
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.nodes import run_all
from tests.support.photos import exif_of


def build_index(store: Store, runtime: Runtime, config: DatasetConfig) -> Artifact:
    return run_all(store, [Node(index.STAGE, "data", config, {})], runtime)["index/data"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shades in (("dark", range(6)), ("bright", range(200, 206))):
        for shade in shades:
            path = tmp_path / "photos of mine" / name / f"{shade}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (shade + 1, 7), shade).save(path)
    return tmp_path / "photos of mine"


def test_table_has_every_image_once_in_contiguous_splits(
    store: Store, runtime: Runtime, folder: Path
) -> None:
    artifact = build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    images = artifact.scan("images").collect()
    assert images["image"].to_list() == list(range(12))
    assert sorted(images["source"]) == sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    for row in images.iter_rows(named=True):
        shade = int(Path(row["source"]).stem)
        assert (row["width"], row["height"]) == (shade + 1, 7)
        assert (
            row["class_name"]
            == ("bright" if row["label"] == 0 else "dark")
            == Path(row["source"]).parent.name
        )
    assert split_range(artifact, "train") == range(10)
    assert split_range(artifact, "test") == range(10, 12)
    with pytest.raises(UserError, match="`validation`: no image has it; this dataset has `train`, `test`"):
        split_range(artifact, "validation")


def test_an_image_of_several_classes_has_all_of_them(store: Store, runtime: Runtime) -> None:
    config = ShapesConfig(seed=2, splits={"two_objects": 30, "test": 20}, label="colour")
    artifact = build_index(store, runtime, config)
    names, rows = class_names_of(artifact), np.arange(50)
    found = label_sets_of(artifact)
    assert found.counts(rows).tolist() == [2] * 30 + [1] * 20
    mask = found.mask(rows, np.arange(len(names)))
    for row in artifact.scan("images").collect().iter_rows(named=True):
        split, index = row["source"].split("/")
        shown = set(world.layout(2, split, int(index)).values("colour"))
        assert {names[label] for label in np.flatnonzero(mask[row["image"]])} == shown
    np.testing.assert_array_equal(found.mask(rows[::-1], np.array([1, 4])), mask[::-1, [1, 4]])
    assert artifact.scan("classes").collect()["n_images"].to_list() == mask.sum(0).tolist()
    pairs = artifact.scan("image_labels").collect()
    assert len(pairs) == 80
    assert [names[label] for label in pairs["label"]] == pairs["class_name"].to_list()
    # Images are chosen by any of their classes.
    red = names.index("red")
    assert rows_of(artifact, "two_objects", ["red"]).tolist() == np.flatnonzero(mask[:30, red]).tolist()


def test_the_classes_of_an_image_are_part_of_the_identity(store: Store, runtime: Runtime) -> None:
    row = {"label": 0, "split": "train", "digest": "d"}
    names = ["a", "b", "c"]
    several = [content_identity(names, [{**row, "labels": labels}]) for labels in [(0, 1), (0, 2), ()]]
    assert len(set(several)) == 3
    # Images of one class have the identity that versions without `labels` gave them.
    assert several[2] == content_identity(names, [row])


def test_touching_files_reruns_the_index_and_keeps_its_identity(
    store: Store, runtime: Runtime, folder: Path
) -> None:
    before = build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    next(folder.rglob("*.png")).touch()
    touched = build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    assert touched.key != before.key
    assert touched.identity == before.identity
    Image.new("L", (50, 50), 9).save(next(folder.rglob("*.png")))
    assert build_index(store, runtime, ImageFolderConfig(root=str(folder))).identity != before.identity


def test_corrupt_images_are_listed_and_left_out_or_refused(
    store: Store, runtime: Runtime, folder: Path
) -> None:
    bad = folder / "dark" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    artifact = build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    assert artifact.scan("corrupt_images").collect()["source"].to_list() == ["dark/3.png"]
    assert artifact.scan("images").select(pl.len()).collect().item() == 11
    with pytest.raises(UserError, match=r"1 of 12 images cannot be read \(dark/3.png.*on_corrupt"):
        build_index(store, runtime, ImageFolderConfig(root=str(folder), on_corrupt="error"))


def test_hostile_files_are_listed_and_two_runs_write_the_same_bytes(
    store: Store, runtime: Runtime, folder: Path, tmp_path: Path
) -> None:
    hostile = {
        "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) show\n%%EOF\n",
        "blp.jpg": b"BLP1" + bytes(400),
        "dds.png": b"DDS " + bytes(400),
        "text.png": b"no image",
        "cut.png": (folder / "dark" / "0.png").read_bytes()[:40],
    }
    for name, data in hostile.items():
        (folder / "dark" / name).write_bytes(data)
    listing = tmp_path / "list.csv"
    sound = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    os.mkfifo(folder / "fifo.png")
    (folder / "link.png").symlink_to("/dev/zero")
    none = ["fifo.png", "link.png", "dark"]
    listing.write_text(
        "path,label,class_name,split\n" + "".join(f"{p},0,all,train\n" for p in [*sound, *none])
    )
    config = ImageFolderConfig(root=str(folder), csv=str(listing))
    artifact = build_index(store, runtime, config)
    corrupt = {row["source"]: row["error"] for row in artifact.scan("corrupt_images").collect().to_dicts()}
    assert corrupt.keys() == {*(f"dark/{name}" for name in hostile), *none}
    assert {corrupt[name] for name in none} == {"is no regular file"}
    assert artifact.manifest.summary["n_images"] == 12
    again = build_index(Store(tmp_path / "other"), runtime, config)
    assert again.manifest.outputs == artifact.manifest.outputs


def test_too_little_memory_is_not_said_of_the_image(
    store: Store, runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(image: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(UserError, match=r"\.png: reading and decoding it needs more memory than is free"):
        build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    assert not store.committed("index")


def test_a_class_without_a_readable_image_stops_nothing(store: Store, runtime: Runtime, folder: Path) -> None:
    for path in (folder / "bright").iterdir():
        path.write_bytes(b"")
    artifact = build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    assert artifact.scan("classes").drop("artifact").collect().rows() == [(0, "bright", 0), (1, "dark", 6)]
    assert artifact.scan("images").collect()["label"].unique().to_list() == [1]
    assert index.remarks(artifact.manifest.summary) == [
        "6 of 12 images cannot be read and were left out: bright/200.png, bright/201.png, bright/202.png, ... (the "
        "table `corrupt_images` says why)",
        "1 class has no image that can be read: bright",
    ]
    for path in (folder / "dark").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the 12 images can be read \(bright/200.png: is no image"):
        build_index(store, runtime, ImageFolderConfig(root=str(folder)))


def test_equal_images_are_told(store: Store, runtime: Runtime, folder: Path) -> None:
    plain = build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    assert index.remarks(plain.manifest.summary) == []
    for split, name in (("a", "dark"), ("b", "dark"), ("b", "bright")):
        (folder / split).mkdir(exist_ok=True)
        (folder / split / name).mkdir()
        shutil.copy(folder / "dark" / "1.png", folder / split / name / "same.png")
        shutil.copy(
            folder / "dark" / f"{2 if name == 'dark' else 3}.png", folder / split / name / "other.png"
        )
    shutil.copy(folder / "dark" / "3.png", folder / "b" / "bright" / "again.png")
    config = ImageFolderConfig(root=str(folder), splits={"train": "a", "test": "b"})
    artifact = build_index(store, runtime, config)
    assert index.remarks(artifact.manifest.summary) == [
        "1 class has no image in one of the splits: `train` (bright)",
        "2 images are in more than one split, byte for byte, so that what one split measures was seen in the other: "
        "a/dark/other.png = b/dark/other.png, a/dark/same.png = b/bright/same.png = b/dark/same.png",
        "1 image is in more than one class, byte for byte: a/dark/same.png = b/bright/same.png = b/dark/same.png",
        "1 image is a copy of another one, byte for byte: b/bright/again.png = b/bright/other.png",
    ]
    groups = artifact.scan("images").group_by("digest").len().collect()
    assert sorted(groups["len"]) == [2, 2, 3]


def test_classes_without_an_image_in_a_split_are_told_of(
    store: Store, runtime: Runtime, folder: Path
) -> None:
    whole = build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    assert index.remarks(whole.manifest.summary) == []
    for i in range(4):
        (folder / f"lonely {i}").mkdir()
        Image.new("L", (4, 4), 100 + i).save(folder / f"lonely {i}" / "one.png")
    (folder / "broken").mkdir()
    (folder / "broken" / "one.png").write_bytes(b"no image")
    artifact = build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    *_, told = index.remarks(artifact.manifest.summary)
    assert told == "4 classes have no image in one of the splits: `test` (lonely 0, lonely 1, lonely 2, ...)"


def test_every_split_that_lacks_a_class_is_told_of(store: Store, runtime: Runtime, folder: Path) -> None:
    rows = {"dark/0.png": "train", "dark/1.png": "val", "bright/200.png": "train", "bright/201.png": "test"}
    listing = folder.parent / "list.csv"
    lines = [f"{path},{path.split('/')[0]},{split}" for path, split in rows.items()]
    listing.write_text("\n".join(["path,class_name,split", *lines]) + "\n")
    artifact = build_index(store, runtime, ImageFolderConfig(root=str(folder), csv=str(listing)))
    (told,) = index.remarks(artifact.manifest.summary)
    assert told == "2 classes have no image in one of the splits: `val` (bright), `test` (dark)"


def turn(path: Path, orientation: int) -> None:
    with Image.open(path) as image:
        image.save(path, exif=exif_of(orientation))


def identity_of_version_1(images: pl.DataFrame, names: list[str]) -> str:
    """As version 1 of the stage computed it: without what was done to the pixels."""
    rows = images.with_columns(treatment=pl.lit("")).to_dicts()
    return index.content_identity(names, rows)


def test_only_images_that_are_read_otherwise_change_the_identity(
    store: Store, runtime: Runtime, folder: Path
) -> None:
    turn(folder / "dark" / "0.png", 1)  # An upright image that has the tag.
    Image.new("RGBA", (9, 9), (1, 2, 3, 255)).save(folder / "dark" / "1.png")  # Opaque.
    plain = build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    images = plain.scan("images").collect()
    assert plain.identity == identity_of_version_1(images, ["bright", "dark"])
    assert set(images["treatment"]) == {""}

    turn(folder / "dark" / "2.png", 6)
    Image.new("RGBA", (9, 9), (1, 2, 3, 4)).save(folder / "dark" / "3.png")
    artifact = build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    images = artifact.scan("images").collect()
    treated = (
        images.filter(pl.col("treatment") != "")
        .sort("source")
        .select("source", "width", "height", "treatment")
    )
    assert treated.rows() == [
        ("dark/2.png", 7, 3, "orientation 6"),
        ("dark/3.png", 9, 9, "background white"),
    ]
    assert artifact.identity != identity_of_version_1(images, ["bright", "dark"])
    assert index.remarks(artifact.manifest.summary) == [
        "1 image is turned upright as the EXIF orientation says",
        "1 image has transparent pixels, which are put on the `background`",
    ]
    as_before = ImageFolderConfig(root=str(folder), orientation="ignore", background="none")
    old = build_index(store, runtime, as_before)
    assert old.identity == identity_of_version_1(images, ["bright", "dark"])
    black = build_index(store, runtime, ImageFolderConfig(root=str(folder), background="black"))
    assert len({artifact.identity, old.identity, black.identity}) == 3


def test_an_interrupted_index_inspects_only_what_is_missing(
    store: Store, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_IMAGES_PER_PART", 100)
    inspected: list[str] = []
    plain = index.inspect

    def stop_after_250(dataset: object, record: index.Record, side: int) -> object:
        inspected.append(record.source)
        if len(inspected) == 250:
            raise KeyboardInterrupt
        return plain(dataset, record, side)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "inspect", stop_after_250)
    with pytest.raises(KeyboardInterrupt):
        build_index(store, runtime, DigitsConfig(n_images=500))
    inspected.clear()
    monkeypatch.setattr(index, "inspect", lambda d, r, side: inspected.append(r.source) or plain(d, r, side))
    artifact = build_index(store, runtime, DigitsConfig(n_images=500))
    assert len(inspected) == 300
    again = build_index(Store(store.root.parent / "other"), runtime, DigitsConfig(n_images=500))
    assert again.manifest.outputs == artifact.manifest.outputs
