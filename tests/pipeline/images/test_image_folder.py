from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchsae.pipeline.images.datasets.image_folder import ImageFolderConfig
from patchsae.pipeline.images.files import decode_rgb
from patchsae.storage.errors import UserError


def save_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size).save(path)


def test_class_folders_are_split_by_class(tmp_path: Path) -> None:
    for i in range(10):
        save_image(tmp_path / "sea shore" / f"{i}.png")
    save_image(tmp_path / "a lone one" / "x.JPG")
    (tmp_path / "sea shore" / "notes.txt").touch()
    dataset = ImageFolderConfig(root=str(tmp_path)).build()
    assert dataset.class_names() == ["a lone one", "sea shore"]
    records = dataset.records()
    assert sorted(r.source for r in records if r.label == 1 and r.split == "test").__len__() == 2
    assert [r.split for r in records if r.label == 0] == ["train"]
    assert len(records) == 11


def test_named_splits(tmp_path: Path) -> None:
    for split in ("training", "val"):
        for name in ("a", "b"):
            save_image(tmp_path / split / name / "0.png")
    config = ImageFolderConfig(root=str(tmp_path), splits={"train": "training", "test": "val"})
    assert [(r.source, r.label, r.split) for r in config.build().records()] == [
        ("training/a/0.png", 0, "train"),
        ("training/b/0.png", 1, "train"),
        ("val/a/0.png", 0, "test"),
        ("val/b/0.png", 1, "test"),
    ]


def test_csv_may_give_two_classes_one_name(tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text("path,label,class_name,split\nx/1.png,0,missile,train\n2.png,1,missile,test\n")
    dataset = ImageFolderConfig(root=str(tmp_path), csv=str(listing)).build()
    assert dataset.class_names() == ["missile", "missile"]
    assert [(r.source, r.label) for r in dataset.records()] == [("x/1.png", 0), ("2.png", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,split\n", "no column `class_name`"),
        ("path,label,class_name,split\na,x,n,train\n", "line 2: label `x`"),
        ("path,label,class_name,split\na,1,n,train\n", "absent|has no row"),
        ("path,label,class_name,split\na,0,n,train\nb,0,m,train\n", "line 3: label 0"),
        ("path,label,class_name,split\na,0,n,train\na,0,n,test\n", "listed twice"),
    ],
)
def test_a_wrong_csv_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text(text)
    with pytest.raises(UserError, match=message):
        ImageFolderConfig(root=str(tmp_path), csv=str(listing)).build().records()


def test_missing_folders_empty_classes_and_wrong_counts_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        ImageFolderConfig(root=str(tmp_path / "nowhere")).build().fingerprint()
    with pytest.raises(UserError, match="no images found"):
        ImageFolderConfig(root=str(tmp_path)).build().records()
    save_image(tmp_path / "full" / "0.png")
    with pytest.raises(UserError, match="n_images is 2, but there are 1"):
        ImageFolderConfig(root=str(tmp_path), n_images=2).build().records()
    with pytest.raises(UserError, match=r"splits\.train: .*no folder"):
        ImageFolderConfig(root=str(tmp_path), splits={"train": "nothing"}).build().records()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: has no images"):
        ImageFolderConfig(root=str(tmp_path)).build().records()


def test_fingerprint_sees_changes_and_not_moves(tmp_path: Path) -> None:
    save_image(tmp_path / "one" / "a" / "0.png")
    before = ImageFolderConfig(root=str(tmp_path / "one")).build().fingerprint()
    (tmp_path / "one").rename(tmp_path / "two")
    assert ImageFolderConfig(root=str(tmp_path / "two")).build().fingerprint() == before
    save_image(tmp_path / "two" / "a" / "0.png", size=(30, 30))
    assert ImageFolderConfig(root=str(tmp_path / "two")).build().fingerprint() != before


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (5, 4), 1).save(buffer, "TIFF")
    image = decode_rgb(buffer.getvalue())
    assert (image.mode, image.size) == ("RGB", (5, 4))


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    values = np.array([[0, 257, 65535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    assert np.asarray(decode_rgb(buffer.getvalue()))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_unreadable_images_raise_oserror(data: bytes) -> None:
    with pytest.raises(OSError):
        decode_rgb(data)


def test_classes_can_be_renamed_and_need_one_name_each(tmp_path: Path) -> None:
    for folder in ("n02", "n01"):
        save_image(tmp_path / folder / "0.png")
    dataset = ImageFolderConfig(root=str(tmp_path), class_names=("crane", "crane")).build()
    assert dataset.class_names() == ["crane", "crane"]
    assert [(r.source, r.label, r.class_name) for r in dataset.records()] == [
        ("n01/0.png", 0, "crane"),
        ("n02/0.png", 1, "crane"),
    ]
    with pytest.raises(UserError, match="1,000 names for the 2 classes"):
        ImageFolderConfig(root=str(tmp_path), class_names="imagenet").build().class_names()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"path,label,class_name,split\n\xe9.png,0,n,train\n", "cannot be read as CSV in UTF-8"),
        (b"path,label,class_name,split\n" + b"a" * 200_000 + b",0,n,train\n", "cannot be read as CSV"),
        (b"path,label,class_name,split\na.png,0,n\n", "line 2: has no `split`; the line is too short"),
        (b"path,label,class_name,split\na\0.png,0,n,train\n", "line 2: path 'a.x00.png' holds a NUL"),
        ("path,label,class_name,split\na.png,²,n,train\n".encode(), "label `²` is no class id"),
        (b"path,label,class_name,split\na.png," + b"9" * 5000 + b",n,train\n", "is no class id"),
    ],
    ids=["not UTF-8", "long field", "short line", "NUL", "superscript", "long label"],
)
def test_a_hostile_csv_is_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    listing = tmp_path / "list.csv"
    listing.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        ImageFolderConfig(root=str(tmp_path), csv=str(listing)).build().records()
    assert "\n" not in str(caught.value)


def test_paths_that_lead_nowhere_have_a_fingerprint(tmp_path: Path) -> None:
    save_image(tmp_path / "1.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    listing = tmp_path / "list.csv"
    for path in ("missing.png", "1.png/inside", "a" * 300, "loop.png"):
        listing.write_text(f"path,label,class_name,split\n1.png,0,n,train\n{path},0,n,test\n")
        dataset = ImageFolderConfig(root=str(tmp_path), csv=str(listing)).build()
        assert len(dataset.fingerprint()) == 64
        with pytest.raises(OSError):
            dataset.read(dataset.records()[1])


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a" / "0.png")
    try:
        (tmp_path / "a" / "0.png").rename(tmp_path / "a" / os.fsdecode(b"\xe9.png"))
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(UserError, match=r"'a/.udce9.png' is not UTF-8.*rename the file"):
        ImageFolderConfig(root=str(tmp_path)).build().records()
