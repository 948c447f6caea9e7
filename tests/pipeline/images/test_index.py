from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.images import index
from patchsae.pipeline.images.datasets.digits import DigitsConfig
from patchsae.pipeline.images.datasets.image_folder import ImageFolderConfig
from patchsae.pipeline.images.tables import split_range
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.nodes import plan, run_node


def build_index(store: Store, runtime: Runtime, config: ImageFolderConfig | DigitsConfig) -> Artifact:
    node = Node(index.STAGE, "data", config, {})
    planned = plan(store, [node])
    return run_node(store, planned[node.address], planned, runtime)


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
    none = ["fifo.png", "link.png", "dark", "missing.png"]
    listing.write_text(
        "path,label,class_name,split\n" + "".join(f"{p},0,all,train\n" for p in [*sound, *none])
    )
    config = ImageFolderConfig(root=str(folder), csv=str(listing))
    artifact = build_index(store, runtime, config)
    corrupt = {row["source"]: row["error"] for row in artifact.scan("corrupt_images").collect().to_dicts()}
    assert corrupt.keys() == {*(f"dark/{name}" for name in hostile), *none}
    assert {corrupt[name] for name in none[:3]} == {"is no regular file"}
    assert corrupt["missing.png"] == "No such file or directory"
    assert artifact.manifest.summary["n_images"] == 12
    again = build_index(Store(tmp_path / "other"), runtime, config)
    assert again.manifest.outputs == artifact.manifest.outputs


def test_too_little_memory_is_not_said_of_the_image(
    store: Store, runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(data: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr("patchsae.pipeline.images.datasets.image_folder.decode_rgb", fail)
    with pytest.raises(UserError, match=r"\.png: reading and decoding it needs more memory than is free"):
        build_index(store, runtime, ImageFolderConfig(root=str(folder)))
    assert not store.committed("index")


def test_a_class_without_a_readable_image_is_refused(store: Store, runtime: Runtime, folder: Path) -> None:
    for path in (folder / "dark").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"class `dark` \(label 1\) has no readable image"):
        build_index(store, runtime, ImageFolderConfig(root=str(folder)))


def test_an_interrupted_index_inspects_only_what_is_missing(
    store: Store, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_IMAGES_PER_PART", 100)
    inspected: list[str] = []
    plain = index.inspect

    def stop_after_250(dataset: object, record: index.Record) -> dict[str, object]:
        inspected.append(record.source)
        if len(inspected) == 250:
            raise KeyboardInterrupt
        return plain(dataset, record)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "inspect", stop_after_250)
    with pytest.raises(KeyboardInterrupt):
        build_index(store, runtime, DigitsConfig(n_images=500))
    inspected.clear()
    monkeypatch.setattr(index, "inspect", lambda d, r: inspected.append(r.source) or plain(d, r))
    artifact = build_index(store, runtime, DigitsConfig(n_images=500))
    assert len(inspected) == 300
    again = build_index(Store(store.root.parent / "other"), runtime, DigitsConfig(n_images=500))
    assert again.manifest.outputs == artifact.manifest.outputs
