"""Pictures are those of the originals: upright, on their background, never enlarged; a plain tile where they are gone."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image
from starlette.testclient import TestClient

from patchsae.pipeline.images.pixels import decode_rgb
from patchsae.pipeline.images.thumbnails import Thumbnails
from patchsae.pipeline.shapes.world import render
from patchsae.storage.store import Store
from tests.explorer.conftest import Open
from tests.support import photo_store


def view_of(client: TestClient, sae: str) -> str:
    views = client.get("/api/home").json()["views"]
    return str(next(view["key"] for view in views if view["sae"] == sae))


def shown(answer: object) -> Image.Image:
    return Image.open(io.BytesIO(answer.content)).convert("RGB")  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [96, 224, 640])
def test_pictures_are_upright_and_never_enlarged(photo_folder: Path, explore: Open, size: int) -> None:
    store = Store(photo_folder / "store")
    client = explore(store)
    view = view_of(client, "cropped")
    [index] = store.committed("index")
    turned = 0
    for row in index.scan("images").collect().iter_rows(named=True):
        answer = client.get(f"/picture/{view}/{row['image']}", params={"size": size})
        assert answer.headers["content-type"] == "image/webp"
        picture, longest = shown(answer), max(row["width"], row["height"])
        assert max(picture.size) == min(size, longest)
        assert picture.width / picture.height == pytest.approx(row["width"] / row["height"], rel=0.05)
        original = decode_rgb((photo_folder / "photos" / row["source"]).read_bytes()).resize(picture.size)
        difference = np.asarray(picture, int) - np.asarray(original, int)
        assert np.abs(difference).mean() < 8
        turned += "orientation" in row["treatment"]
    assert turned


@pytest.mark.parametrize("size", [96, 640])
@pytest.mark.parametrize("has_thumbnails", [True, False])
def test_a_picture_that_is_gone_or_changed_is_a_small_one_or_a_tile_that_says_so(
    photo_folder: Path, explore: Open, tmp_path: Path, has_thumbnails: bool, size: int
) -> None:
    folder = tmp_path / "photos"
    store = Store(shutil.copytree(photo_folder / "store", tmp_path / "store"))
    shutil.copytree(photo_folder / "photos", folder)
    for record in (store.root / "experiments").iterdir():
        # The record is that of an older version, so the index tells where the images were.
        record.unlink()
    [index] = store.committed("index")
    outputs = [one for one in index.manifest.outputs if has_thumbnails or "thumbnails" not in one.path]
    changes = {"provenance": {"source": {"root": str(folder)}}, "outputs": outputs}
    manifest = index.manifest.model_copy(update=changes).sealed()
    (index.path / "manifest.json").write_text(manifest.model_dump_json())
    client = explore(store)
    view = str(client.get("/api/home").json()["views"][0]["key"])
    gone, changed = index.scan("images").collect()["source"].head(2)
    (folder / gone).unlink()
    Image.new("RGB", (5, 5)).save(folder / changed)
    answers = [client.get(f"/picture/{view}/{row}", params={"size": size}) for row in range(3)]
    types = [one.headers["content-type"] for one in answers]
    if has_thumbnails:
        # What was indexed is shown, and not what is there now.
        small = Thumbnails(index).read([0, 1])
        assert [one.content for one in answers[:2]] == [small[0], small[1]] and types == ["image/webp"] * 3
    else:
        assert types == ["image/svg+xml"] * 2 + ["image/webp"]
    if size == 640 or not has_thumbnails:
        assert [one.headers.get("x-picture") for one in answers] == ["gone", "changed", None]
        assert all("no-cache" in one.headers["cache-control"] for one in answers[:2])
    assert client.get(f"/api/view/{view}").json()["pictures"] is True
    shutil.rmtree(folder)
    told = explore(store).get(f"/api/view/{view}").json()
    assert (
        told["pictures"] is has_thumbnails and "is not there any more; put it back." in told["pictures_why"]
    )


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("picture/VIEW/30", 404, "image 30: the dataset has the rows 0 to 29."),
        ("picture/VIEW/-1", 404, "image -1: the dataset has the rows 0 to 29."),
        ("picture/VIEW/..%2f..%2fetc", 404, "there is no such"),
        ("picture/0000000000000000/1", 404, "view 0000000000000000: is not in this store"),
        ("picture/VIEW/1?size=97", 400, "size=97: pictures have the sizes 96, 224, 640."),
        ("picture/VIEW/1?size=1e9", 400, "size=1e9: pictures have the sizes"),
        ("truth/VIEW/1", 404, "Only images of the shapes world have a ground truth."),
    ],
)
def test_bad_requests_are_a_sentence(
    photo_folder: Path, explore: Open, path: str, status: int, words: str
) -> None:
    client = explore(Store(photo_folder / "store"))
    answer = client.get(f"/{path.replace('VIEW', view_of(client, 'cropped'))}")
    assert answer.status_code == status and words in answer.json()["error"]


def test_boxes_are_those_of_the_backbones(photo_folder: Path, explore: Open) -> None:
    with photo_store.squeezing_is_known():
        store = Store(photo_folder / "store")
        client = explore(store)
        n_cut = 0
        for sae in ("cropped", "squeezed", "oblong"):
            view = view_of(client, sae)
            rows = store.committed("statistics")[0].scan("latent_images").collect()["latent"].unique()
            for latent in rows.head(3):
                for one in client.get(f"/api/latent/{view}/{latent}").json()["top"]:
                    left, top, right, bottom = one["box"]
                    shape = (right - left) * one["width"] / ((bottom - top) * one["height"])
                    if sae == "squeezed":
                        assert one["box"] == [0, 0, 1, 1]
                    else:
                        assert shape == pytest.approx(40 / 24 if sae == "oblong" else 1, rel=0.04)
                        assert (left, right) == (0, 1) or (top, bottom) == (0, 1)
                    n_cut += one["box"] != [0, 0, 1, 1]
        assert n_cut


def test_the_ground_truth_lies_on_the_objects(shapes_store: Store, explore: Open) -> None:
    client = explore(shapes_store)
    view = view_of(client, "relu")
    assert client.get(f"/api/view/{view}").json()["attributes"] == ["colour", "texture", "background"]
    answer = client.get(f"/truth/{view}/3")
    drawn = Image.open(io.BytesIO(answer.content))
    assert answer.headers["content-type"] == "image/png" and drawn.size == (512, 512) and drawn.mode == "RGBA"
    [index] = shapes_store.committed("index")
    source = index.scan("images").filter(pl.col("image") == 3).collect()["source"][0]
    split, number = source.split("/")
    scene = render(1, split, int(number))
    alpha = np.asarray(drawn.getchannel("A").resize((64, 64), Image.Resampling.BOX)) / 255
    inside = sum(one.mask for one in scene.objects)
    rows, columns = np.nonzero(inside > 0.5)
    found_rows, found_columns = np.nonzero(alpha > 0.3)
    assert abs(found_rows.min() - rows.min()) <= 1 and abs(found_rows.max() - rows.max()) <= 1
    assert abs(found_columns.min() - columns.min()) <= 1 and abs(found_columns.max() - columns.max()) <= 1
    # Lines only: neither the inside of an object nor the background is covered.
    assert alpha[inside == 0].mean() < 0.2 and 0.02 < alpha.mean() < 0.3
