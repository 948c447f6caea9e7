"""A dataset whose images are read in another way than before is extracted again, and the plan says why."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import Work, work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.store import Store
from tests.support.photos import exif_of

YAML = """
name: photos
datasets: {{photos: {{kind: image_folder, root: {root!r}{more}}}}}
backbones: {{clip: {{kind: shapes_clip}}}}
saes: {{sae: {{kind: topk, k: 4, n_latents: 16, batch_size: 32, n_steps: 2, dataset: photos, backbone: clip}}}}
"""
AS_BEFORE = ", orientation: ignore, background: none"
"""How versions up to 0.1 read images, and with the same keys of all that is made from an index."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(5):
        path = tmp_path / "photos" / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 9), (i, 50, 0)).save(path)
    return tmp_path / "photos"


def work(store: Store, folder: Path, more: str = "") -> Work:
    return work_on(store, parse(YAML.format(root=str(folder), more=more), "photos"))


def test_plain_images_keep_all_that_was_made_from_them(store: Store, folder: Path) -> None:
    run(work(store, folder, AS_BEFORE), Runtime())
    run(work_on(store, work(store, folder).experiment, only=["index"]), Runtime())
    assert not work(store, folder).to_do()


def test_turned_and_transparent_images_are_named_as_the_reason(store: Store, folder: Path) -> None:
    for i in (1, 2, 3):
        Image.new("RGB", (8, 9), (i, 50, 0)).save(folder / "a" / f"{i}.png", exif=exif_of(3))
    Image.new("RGBA", (8, 9), (4, 50, 0, 9)).save(folder / "a" / "4.png")
    run(work(store, folder, AS_BEFORE), Runtime())
    run(work_on(store, work(store, folder).experiment, only=["index"]), Runtime())
    planned = work(store, folder).planned
    assert planned["extract/photos-clip"].why == (
        "input images changed (3 images turned by their EXIF orientation (a/1.png, a/2.png, ...); 1 image put on "
        "another background (a/4.png))"
    )
    assert not work(store, folder, AS_BEFORE).to_do(), "the images as they were read before are still there"


def test_changed_images_are_named_as_the_reason(store: Store, folder: Path) -> None:
    run(work(store, folder), Runtime())
    Image.new("RGB", (8, 9), (77, 50, 0)).save(folder / "a" / "1.png")
    run(work_on(store, work(store, folder).experiment, only=["index"]), Runtime())
    assert work(store, folder).planned["extract/photos-clip"].why == (
        "input images changed (1 image changed (a/1.png))"
    )


def test_a_folder_that_was_moved_is_looked_at_again_and_nothing_else_is_done(
    store: Store, folder: Path
) -> None:
    run(work(store, folder), Runtime())
    moved = folder.rename(folder.parent / "moved")
    assert work(store, moved).planned["index/photos"].why == f"images are in {moved}, and were in {folder}"
    run(work_on(store, work(store, moved).experiment, only=["index"]), Runtime())
    assert not work(store, moved).to_do()
