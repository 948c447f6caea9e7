"""A folder as people have it goes through a whole experiment, and each odd thing in it is told in plain words."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

import patchsae
from patchsae.flows.cli.app import app
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import load
from patchsae.pipeline.experiment.remarks import remarks
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store
from tests.support.photos import exif_of

YAML = """
name: odd
datasets: {photos: {kind: image_folder, root: my photos, splits: {train: train, test: test}}}
backbones: {clip: {kind: shapes_clip}}
saes: {sae: {kind: topk, k: 4, n_latents: 16, batch_size: 64, n_steps: 2, dataset: photos, backbone: clip}}
evaluations:
  statistics: {kind: statistics, sae: sae}
  masking: {kind: masking, statistics: statistics, ks: [1, 4], n_random: 1, prompts: &words {templates: [a shape]}}
  reconstruction: {kind: reconstruction, sae: sae, prompts: *words}
"""
READ = [
    "train/cats/16 bits.png",
    "train/cats/alpha.PNG",
    "train/cats/animated.gif",
    "train/cats/animated.webp",
    "train/cats/cmyk.jpg",
    "train/cats/deep/er/nested.bmp",
    "train/cats/grey.png",
    "train/cats/line\nbreak.png",
    "train/cats/turned.JPEG",
    "train/cats/ümläut ß.TIF",
    "train/only one/single.png",
    "test/cats/copy of grey.png",
    "test/cats/other.png",
]
UNREADABLE = [
    "train/cats/empty.jpg",
    "train/cats/text.png",
    "train/cats/truncated.jpg",
    "test/broken/zero.png",
]


def noise(seed: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (40, 64, 3), np.uint8)).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder `my experiments`, with the YAML file and its images."""
    root = tmp_path / "my experiments" / "my photos"
    for number, name in enumerate([*READ, *UNREADABLE]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(number).save(path, "PNG")
    cats = root / "train" / "cats"
    noise(100, "L").save(cats / "grey.png")
    Image.fromarray(np.linspace(0, 65535, 40 * 64).reshape(40, 64).astype(np.uint16)).save(
        cats / "16 bits.png"
    )
    transparent = noise(101, "RGBA")
    transparent.putalpha(0)
    transparent.save(cats / "alpha.PNG")
    for kind in ("gif", "webp"):
        noise(102).save(cats / f"animated.{kind}", save_all=True, append_images=[noise(103)])
    noise(104, "CMYK").save(cats / "cmyk.jpg")
    noise(105).save(cats / "turned.JPEG", exif=exif_of(6))
    noise(106).save(cats / "ümläut ß.TIF")
    noise(107).save(cats / "deep" / "er" / "nested.bmp")
    shutil.copy(cats / "grey.png", root / "test" / "cats" / "copy of grey.png")
    whole = io.BytesIO()
    noise(108).save(whole, "JPEG")
    (cats / "truncated.jpg").write_bytes(whole.getvalue()[:-400])
    (cats / "text.png").write_bytes(b"no image")
    for name in ("train/cats/empty.jpg", "test/broken/zero.png"):
        (root / name).write_bytes(b"")
    for name in (
        "train/.DS_Store",
        "train/cats/.hidden/secret.png",
        "train/cats/Thumbs.db",
        "train/cats/phone.heic",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes((cats / "grey.png").read_bytes())
    (root / "train" / "no images").mkdir()
    (root / "train" / "all").symlink_to(root)
    (cats / "gone.jpg").symlink_to("nowhere.jpg")
    shutil.copy(cats / "grey.png", root / "train" / "beside.png")
    (tmp_path / "my experiments" / "odd.yaml").write_text(YAML)
    return tmp_path / "my experiments"


TOLD = [
    "left out 2 hidden files and folders: train/.DS_Store, train/cats/.hidden (`hidden: true` looks at them)",
    "left out 1 linked folder: train/all (`follow_links: true` follows them)",
    "left out 1 link that leads nowhere: train/cats/gone.jpg",
    "left out 2 files that are no images of the formats that are read: 1 .db, 1 .heic",
    "left out 1 image that lies beside the class folders: train/beside.png",
    "left out 1 class folder without an image: train/no images",
    "4 of 17 images cannot be read and were left out: test/broken/zero.png, train/cats/empty.jpg, "
    "train/cats/text.png, ... (the table `corrupt_images` says why)",
    "1 class has no image that can be read: broken",
    "1 class has no image in one of the splits: `test` (only one)",
    "1 image is turned upright as the EXIF orientation says",
    "1 image has transparent pixels, which are put on the `background`",
    "1 image is in more than one split, byte for byte, so that what one split measures was seen in the other: "
    "test/cats/copy of grey.png = train/cats/grey.png",
]


def corrupt(index: Artifact) -> dict[str, str]:
    return dict(index.scan("corrupt_images").select("source", "error").collect().rows())


def test_a_folder_of_odd_files_goes_through(
    folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = str(folder / "odd.yaml")
    done = run(work_on(store, load(file)), Runtime())
    index = done["index/photos"]
    images = index.scan("images").drop("artifact").collect()
    assert sorted(images["source"]) == sorted(READ)
    assert index.scan("classes").drop("artifact").collect().rows() == [
        (0, "broken", 0),
        (1, "cats", 12),
        (2, "only one", 1),
    ]
    assert corrupt(index).keys() == set(UNREADABLE)
    assert not any("0x" in error or str(tmp_path) in error for error in corrupt(index).values())
    turned = images.row(by_predicate=pl.col("source") == "train/cats/turned.JPEG", named=True)
    assert (turned["width"], turned["height"]) == (40, 64)
    assert done["masking/masking"].scan("masking").collect()["accuracy"].is_finite().all()

    # What is to be known is said at the end of each run, and by the plan, in one line each.
    work = work_on(store, load(file))
    assert not work.to_do()
    assert remarks(work) == [f"index/photos: {sentence}." for sentence in TOLD]
    for command in (["run", file], ["plan", file]):
        shown = CliRunner().invoke(app, [*command, "--store", str(store.root)])
        assert shown.exit_code == 0
        lines = shown.stderr.splitlines()
        assert [line for line in lines if line.startswith("index/photos: ")] == remarks(work)

    # An image of one's own is read as those of the data set are.
    sae = patchsae.open(store.root).sae("sae")
    photos = folder / "my photos"
    for source in ("train/cats/turned.JPEG", "train/cats/alpha.PNG", "train/cats/16 bits.png"):
        row = images.row(by_predicate=pl.col("source") == source, named=True)["image"]
        own, cached = sae.encode(photos / source).frame, sae.encode_row(row).frame
        assert own["latent"].to_list() == cached["latent"].to_list()
        assert np.allclose(own["activation"], cached["activation"], rtol=2e-2, atol=2e-3)

    # The same folder gives the same bytes, and what follows is not done again when a file is touched.
    again = run(work_on(Store(tmp_path / "other"), load(file), only=["index"]), Runtime())["index/photos"]
    assert again.manifest.outputs == index.manifest.outputs
    os.utime(photos / "train" / "cats" / "grey.png")
    assert work_on(store, load(file)).to_do()[0] == "index/photos"
    run(work_on(store, load(file), only=["index"]), Runtime())
    assert not work_on(store, load(file)).to_do()
