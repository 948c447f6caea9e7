from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from patchsae.pipeline.images.datasets.image_folder import ImageFolderConfig
from patchsae.pipeline.images.pixels import decode_rgb
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


def test_what_is_left_out_beside_the_classes_is_named_from_the_root(tmp_path: Path) -> None:
    for split in ("training", "val"):
        save_image(tmp_path / split / "a" / "0.png")
        (tmp_path / split / ".DS_Store").touch()
        save_image(tmp_path / split / "lone.png")
    config = ImageFolderConfig(root=str(tmp_path), splits={"train": "training", "test": "val"})
    hidden, beside = config.source().remarks
    assert "training/.DS_Store, val/.DS_Store" in hidden
    assert "training/lone.png, val/lone.png" in beside


def test_a_split_outside_of_the_root_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "elsewhere" / "a" / "0.png")
    config = ImageFolderConfig(root=str(tmp_path / "root"), splits={"train": str(tmp_path / "elsewhere")})
    (tmp_path / "root").mkdir()
    with pytest.raises(UserError, match=r"splits\.train: .*elsewhere is not below .*root"):
        config.source()


def test_csv_may_give_two_classes_one_name(tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text("path,label,class_name,split\nx/1.png,0,missile,train\n2.png,1,missile,test\n")
    dataset = ImageFolderConfig(root=str(tmp_path), csv=str(listing)).build()
    assert dataset.class_names() == ["missile", "missile"]
    assert [(r.source, r.label) for r in dataset.records()] == [("x/1.png", 0), ("2.png", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,split\n", "no column `class_name` and no `label`"),
        ("file,label\n", "has no column `path`; there is `file`, `label`"),
        ("path,path,label\n", "two columns `path`"),
        ("\npath,label\n", "begins with an empty line"),
        ("path,label,class_name,split\n", "lists no image"),
        ("", "has no column `path`"),
        ("path,class_name\na, b.jpg,cat\n", "line 2: has 3 cells and the first line 2; put quotes"),
        ("path,class_name\na.jpg,\n", "line 2: has no `class_name`; the cell is empty"),
        ("sep=;\npath;class_name\na.jpg;\n", "line 3: has no `class_name`; the cell is empty"),
        ("sep=;\npath,class_name\n", "has no column `path`"),
        ("sep=;\n", "has no column `path`"),
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


def test_fingerprint_sees_changes_and_places(tmp_path: Path) -> None:
    save_image(tmp_path / "one" / "a" / "0.png")
    before = ImageFolderConfig(root=str(tmp_path / "one")).build().fingerprint()
    (tmp_path / "link").symlink_to("one")
    assert ImageFolderConfig(root=str(tmp_path / "link")).build().fingerprint() == before
    # Another folder of images of the same names, sizes and times is another dataset.
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert ImageFolderConfig(root=str(tmp_path / "two")).build().fingerprint() != before
    save_image(tmp_path / "one" / "a" / "0.png", size=(30, 30))
    assert ImageFolderConfig(root=str(tmp_path / "one")).build().fingerprint() != before


def test_an_empty_class_folder_is_left_out_and_told(tmp_path: Path) -> None:
    save_image(tmp_path / "b" / "0.png")
    (tmp_path / "a").mkdir()
    dataset = ImageFolderConfig(root=str(tmp_path)).build()
    assert dataset.class_names() == ["b"]
    assert [(r.label, r.class_name) for r in dataset.records()] == [(0, "b")]
    assert dataset.remarks() == ("left out 1 class folder without an image: a",)
    # A list of names is in the order of all folders, so an empty one keeps its place there.
    named = ImageFolderConfig(root=str(tmp_path), class_names=("ape", "bear")).build()
    assert [(r.label, r.class_name) for r in named.records()] == [(1, "bear")]


def test_a_linked_class_folder_counts_only_if_asked_for(tmp_path: Path) -> None:
    save_image(tmp_path / "a" / "0.png")
    (tmp_path / "all").symlink_to(tmp_path)
    save_image(tmp_path / "beside.png")
    dataset = ImageFolderConfig(root=str(tmp_path)).build()
    assert dataset.class_names() == ["a"]
    assert dataset.remarks() == (
        "left out 1 linked folder: all (`follow_links: true` follows them)",
        "left out 1 image that lies beside the class folders: beside.png",
    )
    (tmp_path / "all").unlink()
    save_image(tmp_path.parent / "elsewhere" / "1.png")
    (tmp_path / "b").symlink_to(tmp_path.parent / "elsewhere")
    followed = ImageFolderConfig(root=str(tmp_path), follow_links=True).build()
    assert [record.source for record in followed.records()] == ["a/0.png", "b/1.png"]


def test_a_link_to_the_folder_that_it_lies_in_is_no_class(tmp_path: Path) -> None:
    save_image(tmp_path / "a" / "0.png")
    (tmp_path / "all").symlink_to(".")
    dataset = ImageFolderConfig(root=str(tmp_path), follow_links=True).build()
    assert [record.source for record in dataset.records()] == ["a/0.png"]


def test_images_without_class_folders_are_one_sentence(tmp_path: Path) -> None:
    save_image(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"no images found in class folders.*1 image that lies beside"):
        ImageFolderConfig(root=str(tmp_path)).build().records()


@pytest.mark.parametrize("background", ["grey", "#12345", "", "white "])
def test_a_background_is_a_colour(background: str) -> None:
    with pytest.raises(ValidationError, match="choose white, black, none"):
        ImageFolderConfig(root="x", background=background)
    assert ImageFolderConfig(root="x", background="#FFFFFF") == ImageFolderConfig(root="x")


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
        (b'{"path": "' + b"a" * 200_000 + b'"}', "line 1: cannot be read as CSV"),
        (b"path,label,class_name,split\na.png,0,n\n", "line 2: has no `split`; the line is too short"),
        (b"path,label,class_name,split\na\0.png,0,n,train\n", "line 2: path 'a.x00.png' holds a NUL"),
        ("path,label,class_name,split\na.png,²,n,train\n".encode(), "label `²` is no class id"),
        (b"path,label,class_name,split\na.png," + b"9" * 5000 + b",n,train\n", "is no class id"),
    ],
    ids=["not UTF-8", "long field", "long first line", "short line", "NUL", "superscript", "long label"],
)
def test_a_hostile_csv_is_one_sentence(tmp_path: Path, data: bytes, message: str) -> None:
    listing = tmp_path / "list.csv"
    listing.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        ImageFolderConfig(root=str(tmp_path), csv=str(listing)).build().records()
    assert "\n" not in str(caught.value)


LISTED = "path,class_name,split\nx/1.png,cat,train\nx/ü 2.png,sea shore,test\n"


@pytest.mark.parametrize(
    "data",
    [
        LISTED.encode(),
        LISTED.encode("utf-8-sig"),
        LISTED.encode("utf-16"),
        LISTED.replace("\n", "\r\n").encode(),
        LISTED.replace("\n", "\r").encode(),
        LISTED.replace(",", ";").encode("utf-8-sig"),
        LISTED.replace(",", "\t").encode("utf-16"),
        b"sep=;\r\n" + LISTED.replace(",", ";").replace("\n", "\r\n").encode(),
        b"SEP=|\n" + LISTED.replace(",", "|").encode(),
        LISTED.replace(",", " , ").encode(),
        LISTED.replace("x/ü 2.png", '"x/ü 2.png"').replace("path", '"Path"').encode(),
        (LISTED + ",,\n\n").encode(),
        LISTED.replace("\n", ",\n").replace("path", "path").encode(),
        LISTED.replace("split\n", "split,note\n").replace("train\n", 'train,"a, note"\n').encode(),
    ],
    ids=[
        "plain", "BOM", "UTF-16", "CRLF", "CR", "semicolons", "tabs in UTF-16", "sep=;", "sep=|", "spaces", "quotes",
        "empty rows", "an empty column", "other columns",
    ],
)  # fmt: skip
def test_a_csv_is_read_as_spreadsheets_save_it(tmp_path: Path, data: bytes) -> None:
    listing = tmp_path / "list.csv"
    listing.write_bytes(data)
    dataset = ImageFolderConfig(root=str(tmp_path), csv=str(listing)).build()
    assert dataset.class_names() == ["cat", "sea shore"]
    assert [tuple(vars(record).values())[:4] for record in dataset.records()] == [
        ("x/1.png", 0, "cat", "train"),
        ("x/ü 2.png", 1, "sea shore", "test"),
    ]


def test_a_csv_may_leave_out_names_or_splits(tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text("path,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(10)))
    dataset = ImageFolderConfig(root=str(tmp_path), csv=str(listing)).build()
    assert dataset.class_names() == ["0", "1"]
    splits = [(record.label, record.split) for record in dataset.records()]
    assert sorted(splits) == sorted([(0, "train"), (1, "train")] * 4 + [(0, "test"), (1, "test")])
    named = ImageFolderConfig(root=str(tmp_path), csv=str(listing), class_names=("cat", "dog")).build()
    assert named.class_names() == ["cat", "dog"]


def test_files_that_a_csv_lists_and_are_missing_are_an_error(tmp_path: Path) -> None:
    save_image(tmp_path / "x" / "1.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    listing = tmp_path / "list.csv"
    missing = ["a.png", "x/1.png/inside", "a" * 300, "loop.png", "e.png", "f.png"]
    listing.write_text("path,class_name\nx/1.png,n\n" + "".join(f"{path},n\n" for path in missing))
    dataset = ImageFolderConfig(root=str(tmp_path), csv=str(listing)).build()
    with pytest.raises(UserError) as caught:
        dataset.fingerprint()
    assert str(caught.value) == (
        f"csv {listing}: 6 files are not below {tmp_path}: {', '.join(sorted(missing)[:5])}, ... (of 7 that it lists)."
    )
    with pytest.raises(UserError, match="6 files are not below"):
        dataset.config.source()


@pytest.mark.parametrize(
    ("path", "hint"), [("x\\1.png", "write `/` between folders"), ("y/0.png", "relative to `root`")]
)
def test_paths_of_another_kind_are_recognised(tmp_path: Path, path: str, hint: str) -> None:
    save_image(tmp_path / "x" / "1.png")
    save_image(tmp_path / "0.png")
    listing = tmp_path / "list.csv"
    listing.write_text(f"path,class_name\n{path},n\n")
    with pytest.raises(UserError, match=hint):
        ImageFolderConfig(root=str(tmp_path), csv=str(listing)).build().fingerprint()


def test_a_csv_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"csv .*nowhere.csv: cannot be read \(No such file"):
        ImageFolderConfig(root=str(tmp_path), csv=str(tmp_path / "nowhere.csv")).build().records()


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "a" / "0.png")
    try:
        (tmp_path / "a" / "0.png").rename(tmp_path / "a" / os.fsdecode(b"\xe9.png"))
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(UserError, match=r"'a/.udce9.png' is not UTF-8.*rename the file"):
        ImageFolderConfig(root=str(tmp_path)).build().records()
