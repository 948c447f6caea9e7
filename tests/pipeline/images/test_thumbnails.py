"""Small pictures in the index: what they show, of which images there are some, and what does not depend on them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchsae.flows.cli.look_text import _rendered
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.images import index, pixels
from patchsae.pipeline.images.datasets.coop import CoopConfig
from patchsae.pipeline.images.datasets.image_folder import ImageFolder, ImageFolderConfig
from patchsae.pipeline.images.datasets.shapes import ShapesConfig
from patchsae.pipeline.images.thumbnails import Thumbnails
from patchsae.pipeline.results.sql import execute, without_bytes
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store
from tests.support.photos import exif_of
from tests.support.sae_inputs import run as run_stage

EXPERIMENT = """
name: photos
datasets: {{photos: {{kind: image_folder, root: {root!r}, test_fraction: 0 {more}}}}}
backbones: {{clip: {{kind: shapes_clip}}}}
"""


def picture(width: int, height: int) -> Image.Image:
    """Something that looks different in every corner."""
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([255 * x / width, 255 * y / height, 255 * (x + y < (width + height) / 3)], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for name in ("a", "b"):
        (root / name).mkdir()
    picture(640, 480).save(root / "a" / "photo.jpg", quality=95)
    picture(300, 900).save(root / "a" / "tall.jpg", quality=95)
    picture(640, 480).save(root / "a" / "turned.jpg", quality=95, exif=exif_of(6))
    picture(50, 30).save(root / "a" / "tiny.jpg", quality=95)
    picture(1900, 2).save(root / "a" / "line.png")
    seen = picture(200, 100).convert("RGBA")
    seen.putalpha(Image.fromarray(np.pad(np.full((50, 200), 255, np.uint8), ((0, 50), (0, 0)))))
    seen.save(root / "b" / "transparent.png")
    Image.fromarray(np.linspace(0, 65535, 200 * 100).reshape(100, 200).astype(np.uint16)).save(
        root / "b" / "deep.png"
    )
    picture(120, 96).save(root / "b" / "exact.webp", quality=95)
    (root / "b" / "broken.jpg").write_bytes((root / "a" / "photo.jpg").read_bytes()[:4000])
    (root / "b" / "text.png").write_text("no image")
    return root


def config(folder: Path, **fields: object) -> ImageFolderConfig:
    return ImageFolderConfig.model_validate({"root": str(folder), "test_fraction": 0, **fields})


def indexed(store: Store, given: ImageFolderConfig) -> Artifact:
    return run_stage(store, index.STAGE, given, {})


def test_a_thumbnail_is_the_small_picture_of_what_the_pipeline_sees(folder: Path, store: Store) -> None:
    images = indexed(store, config(folder))
    table = images.scan("images").join(images.scan("thumbnails"), on="image", suffix="_small").collect()
    assert table.height == 8 == images.scan("images").collect().height
    sizes = {}
    for row in table.iter_rows(named=True):
        with Image.open(io.BytesIO(row["webp"])) as small:
            assert small.format == "WEBP" and small.size == (row["width_small"], row["height_small"])
            found = np.asarray(small.convert("RGB")).astype(int)
        sizes[row["source"]] = (row["width_small"], row["height_small"])
        whole = pixels.decode_rgb((folder / row["source"]).read_bytes())
        assert whole.size == (row["width"], row["height"])
        expected = np.asarray(whole.resize(sizes[row["source"]], Image.Resampling.BOX)).astype(int)
        assert np.abs(found - expected).mean() < 8, row["source"]
    assert sizes == {
        "a/photo.jpg": (96, 72),
        "a/tall.jpg": (32, 96),
        "a/turned.jpg": (72, 96),
        "a/tiny.jpg": (50, 30),
        "a/line.png": (96, 1),
        "b/transparent.png": (96, 48),
        "b/deep.png": (96, 48),
        "b/exact.webp": (96, 77),
    }


def test_facts_do_not_depend_on_thumbnails(folder: Path) -> None:
    for path in sorted(folder.glob("*/*")):
        data, reading = path.read_bytes(), pixels.Reading(background="black")
        try:
            facts = pixels.inspect(data, reading)
        except OSError as error:
            with pytest.raises(OSError) as other:
                pixels.inspect_small(data, reading, 96)
            assert str(other.value) == str(error)
        else:
            assert pixels.inspect_small(data, reading, 96)[0] == facts


@pytest.mark.parametrize("side", [33, 96, 130])
def test_a_jpeg_is_decoded_no_smaller_than_its_thumbnail(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    plain = pixels._thumbnail
    monkeypatch.setattr(
        pixels,
        "_thumbnail",
        lambda image, facts, side: decoded.append(image.size) or plain(image, facts, side),
    )
    for size in ((640, 480), (300, 901), (97, 30), (2000, 1999)):
        file = io.BytesIO()
        picture(*size).save(file, "JPEG")
        _, small = pixels.inspect_small(file.getvalue(), pixels.Reading(), side)
        assert max(small.width, small.height) == min(side, max(size))
        assert max(decoded[-1]) >= max(small.width, small.height)
        # Of the sizes that libjpeg offers, the smallest one.
        assert max(decoded[-1]) < 2 * side or max(decoded[-1]) <= -(-max(size) // 8)


def test_nothing_that_is_made_from_images_depends_on_their_thumbnails(folder: Path, store: Store) -> None:
    keys, identities = {}, set()
    for more in ("", ", thumbnails: 0", ", thumbnails: 40"):
        experiment = parse(EXPERIMENT.format(root=str(folder), more=more), "photos")
        run(work_on(store, experiment, ["index"]), Runtime())
        planned = work_on(store, experiment, ["index"]).planned["index/photos"]
        assert planned.state == "cached" and planned.key is not None
        keys[more] = planned.key
        identities.add(store.at("index", planned.key).identity)
    assert len(set(keys.values())) == 3 and len(identities) == 1
    # An index of a version that knew none keeps its key.
    assert "thumbnails" not in config(folder).key_config()
    made = store.at("index", keys[", thumbnails: 0"])
    assert "thumbnails" not in made.table_names() and Thumbnails(made).read([0]) == {}
    small = store.at("index", keys[", thumbnails: 40"]).scan("thumbnails").collect()
    assert small["width"].max() == 40


def test_many_images_have_thumbnails_only_if_asked_for(folder: Path) -> None:
    given = config(folder)
    assert given.thumbnail_side(99_999) == 96 and given.thumbnail_side(100_000) == 0
    assert config(folder, thumbnails=128).thumbnail_side(1_000_000) == 128
    assert config(folder, thumbnails=0).thumbnail_side(5) == 0
    assert CoopConfig(name="dtd", root=".").thumbnail_side(5) == 96
    assert ShapesConfig(seed=0, splits={"train": 2}).thumbnail_side(5) == 0


def test_parts_and_images_that_cannot_be_read_leave_rows_in_place(
    folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = indexed(store, config(folder)).scan("thumbnails").drop("artifact").collect()
    monkeypatch.setattr(index, "_IMAGES_PER_PART", 3)
    parts = indexed(Store(tmp_path / "parts"), config(folder))
    assert len(parts.table_files("thumbnails")) == 4
    assert parts.scan("thumbnails").drop("artifact").collect().sort("image").equals(whole)
    assert Thumbnails(parts).read([7, 0, 7, 3, 999]) == {image: whole["webp"][image] for image in (0, 3, 7)}


def test_few_row_groups_are_read_for_few_pictures(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "many" / "a").mkdir(parents=True)
    for i in range(200):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / "many" / "a" / f"{i}.png")
    images = indexed(store, config(tmp_path / "many"))
    groups: list[int] = []
    plain = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda file, i, **more: groups.append(i) or plain(file, i, **more)
    )
    found = Thumbnails(images).read([199, 70, 130, 71])
    assert sorted(found) == [70, 71, 130, 199] and groups == [1, 2, 3]
    expected = images.scan("thumbnails").collect()["webp"]
    assert all(found[image] == expected[image] for image in found)


def test_an_interrupted_index_keeps_the_thumbnails_it_has(
    folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_IMAGES_PER_PART", 3)
    seen: list[str] = []
    plain = index.inspect

    def stop(dataset: ImageFolder, record: index.Record, side: int) -> object:
        seen.append(record.source)
        if len(seen) == 8:
            raise KeyboardInterrupt
        return plain(dataset, record, side)

    monkeypatch.setattr(index, "inspect", stop)
    with pytest.raises(KeyboardInterrupt):
        indexed(store, config(folder))
    done = sorted((store.root / "index").glob("*/parts/part-*"))
    assert 0 < len(done) < 4
    before = len(seen)
    found = indexed(store, config(folder))
    assert len(seen) - before == 10 - 3 * len(done)
    expected = indexed(Store(tmp_path / "other"), config(folder))
    assert found.manifest.outputs == expected.manifest.outputs


def test_an_index_that_an_earlier_version_began_gets_thumbnails_of_all(
    folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_IMAGES_PER_PART", 3)
    plain, n_seen = ImageFolder.inspect, 0

    def stop(dataset: ImageFolder, data: bytes) -> pixels.Facts:
        nonlocal n_seen
        n_seen += 1
        if n_seen > 5:
            raise KeyboardInterrupt
        return plain(dataset, data)

    with monkeypatch.context() as earlier:
        earlier.setattr(ImageFolderConfig, "thumbnail_side", lambda *_: 0)
        earlier.setattr(ImageFolder, "inspect", stop)
        with pytest.raises(KeyboardInterrupt):
            indexed(store, config(folder))
    found, expected = indexed(store, config(folder)), indexed(Store(tmp_path / "other"), config(folder))
    assert found.manifest.outputs == expected.manifest.outputs


def test_texts_say_how_large_a_file_in_a_column_is(folder: Path, store: Store) -> None:
    run(work_on(store, parse(EXPERIMENT.format(root=str(folder), more=""), "photos"), ["index"]), Runtime())
    frame = execute(store, "SELECT * FROM thumbnails ORDER BY image")
    sizes = [f"{len(webp):,} bytes" for webp in frame["webp"]]
    assert without_bytes(frame)["webp"].to_list() == sizes
    assert sizes[0] in _rendered(frame, "table", whole=False).decode()
    assert pl.read_csv(_rendered(frame, "csv", whole=True))["webp"].to_list() == sizes
    assert [row["webp"] for row in json.loads(_rendered(frame, "json", whole=True))] == sizes
    whole = pl.read_parquet(io.BytesIO(_rendered(frame, "parquet", whole=True)))
    assert whole["webp"].to_list() == frame["webp"].to_list()
    nulls = pl.DataFrame({"webp": [None, b"x"]}, schema={"webp": pl.Binary})
    assert without_bytes(nulls)["webp"].to_list() == [None, "1 byte"]
