"""The images of an index, read again: as they were indexed, gone, changed, or without a record."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.images.originals import NoOriginal
from patchsae.pipeline.images.pixels import decode_rgb
from patchsae.pipeline.results.find import find
from patchsae.pipeline.results.originals import Originals
from patchsae.pipeline.results.places import Place
from patchsae.storage.errors import UserError
from patchsae.storage.records import ExperimentRecord
from patchsae.storage.store import Store

EXPERIMENT = """
name: photos
datasets:
  photos: {{kind: image_folder, root: {root!r}}}
  shapes: {{kind: shapes, seed: 1, splits: {{test: 5}}}}
backbones: {{clip: {{kind: shapes_clip}}}}
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    rng = np.random.default_rng(0)
    for i in range(4):
        path = tmp_path / "photos" / f"class {i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30 + i, 20, 3), np.uint8)).save(path)
    store = Store(tmp_path / "store")
    run(work_on(store, parse(EXPERIMENT.format(root=str(tmp_path / "photos")), "photos")), Runtime())
    return store


def originals(store: Store, dataset: str = "photos", record: bool = True) -> Originals:
    of = store.records.current()["photos"]
    node = of.nodes[f"index/{dataset}"]
    if not record:
        of = ExperimentRecord(of.nodes)
    return Originals(find(store, f"index/{dataset}"), Place("photos", of, node))


@pytest.mark.parametrize("record", [True, False])
def test_images_are_those_of_the_files(store: Store, tmp_path: Path, record: bool) -> None:
    found = originals(store, record=record)
    assert found.why_not is None and found.folder == str(tmp_path / "photos")
    for row in range(4):
        path = tmp_path / "photos" / found.row(row)["source"]
        assert found.image(row).tobytes() == decode_rgb(path.read_bytes()).tobytes()
    for row in (4, -1):
        with pytest.raises(UserError, match=rf"image {row}: the dataset has the rows 0 to 3\."):
            found.image(row)


def test_images_that_are_not_as_indexed_are_told_apart(store: Store, tmp_path: Path) -> None:
    found = originals(store)
    gone, changed = (tmp_path / "photos" / found.row(row)["source"] for row in (0, 1))
    gone.unlink()
    Image.new("RGB", (20, 20)).save(changed)
    with pytest.raises(NoOriginal, match=r"cannot be read any more \(No such file or directory\)") as error:
        found.image(0)
    assert error.value.what == "gone"
    with pytest.raises(NoOriginal, match="is not the image that was indexed") as error:
        found.image(1)
    assert error.value.what == "changed"
    assert found.image(2).size == (20, found.row(2)["height"])
    shutil.rmtree(tmp_path / "photos")
    assert "is not there any more; put it back." in str(originals(store).why_not)


def test_a_store_that_does_not_know_says_so(store: Store, tmp_path: Path) -> None:
    found = originals(store, "shapes", record=False)
    assert found.config is None and "run the experiment once more" in str(found.why_not)
    with pytest.raises(UserError, match="image 0: The store does not say where the images are"):
        found.image(0)
    assert originals(store, "shapes").image(0).size == (64, 64)


def test_a_record_with_an_unknown_dataset_is_one_sentence(store: Store) -> None:
    of = store.records.current()["photos"]
    for raw, sentence in (
        ({"kind": "telepathy"}, "has no dataset `photos` of a kind that this version knows"),
        ({"kind": "image_folder", "root": 3}, "experiment photos, dataset photos: `root`"),
    ):
        record = ExperimentRecord(of.nodes, {**(of.experiment or {}), "datasets": {"photos": raw}})
        with pytest.raises(UserError, match=sentence):
            _ = Place("photos", record, of.nodes["index/photos"]).dataset


def test_pictures_need_no_torch() -> None:
    code = "import sys, patchsae.pipeline.results.originals as o; o.Place; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
