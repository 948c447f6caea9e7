"""`patchsae encode`: the latents of own images as rows, and their maps as pictures."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

import patchsae as api
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.store import Store
from tests.support.command import patchsae, sentence

EXPERIMENT = """
name: own
datasets: {shapes: {kind: shapes, seed: 1, splits: {train: 24}}}
backbones: {clip: {kind: shapes_clip}}
saes:
  one: {kind: topk, k: 4, dataset: shapes, backbone: clip, n_latents: 48, batch_size: 128, n_steps: 5}
  other: {kind: topk, k: 4, dataset: shapes, backbone: clip, n_latents: 48, batch_size: 128, n_steps: 5, seed: 3}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own") / "store"
    run(work_on(Store(root), parse(EXPERIMENT, "own")), Runtime())
    return root


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two images of the same name in two folders."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "a" / "my photo.jpg", tmp_path / "b" / "my photo.png"]
    for path, size in zip(paths, ((60, 90), (200, 100)), strict=True):
        path.parent.mkdir()
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path)
    return paths


def test_rows_are_those_of_the_api(store: Path, photos: list[Path]) -> None:
    answer = patchsae("encode", *photos, "--sae", "one", "--store", store, "--k", "3", "--format", "csv")
    assert answer.exit_code == 0, answer.output
    rows = pl.read_csv(io.StringIO(answer.stdout))
    expected = api.open(store).sae("one").encode(photos).top(3)
    assert rows["latent"].to_list() == expected["latent"].to_list() and rows.height == 6
    assert rows["activation"].to_list() == pytest.approx(expected["activation"].to_list(), rel=1e-5)
    for row in rows.iter_rows(named=True):
        patch = None if row["row"] is None else 1 + 8 * row["row"] + row["column"]
        assert patch == (row["token"] or None)
    shown = patchsae("encode", photos[0], "--sae", "one", "--store", store, "--k", "2").stdout
    assert "latent" in shown and str(rows["latent"][0]) in shown


def test_maps_are_written_as_pictures(store: Path, photos: list[Path], tmp_path: Path) -> None:
    to = tmp_path / "maps"
    options = ("--sae", "one", "--store", store, "--k", "3", "--to", to)
    answer = patchsae("encode", *photos, *options)
    assert answer.exit_code == 0 and "6 maps written to" in answer.stderr
    top = api.open(store).sae("one").encode(photos).top(3)
    for name, path in zip(("my photo", "my photo-2"), photos, strict=True):
        latents = top.filter(pl.col("image") == str(path))["latent"]
        files = {one.name for one in (to / name).iterdir()}
        assert files == {"sheet.png", *(f"latent-{latent}.png" for latent in latents)}
    assert Image.open(to / "my photo-2" / "sheet.png").width > 3 * 320
    assert max(Image.open(to / "my photo" / f"latent-{top['latent'][0]}.png").size) == 320
    refused = sentence(patchsae("encode", *photos, *options))
    assert refused == f"--to {to}: holds files already; give a new folder, or `--force`."
    assert patchsae("encode", *photos, *options, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("PHOTO",), r"--sae: say which SAE; the store has one, other\."),
        (
            ("PHOTO", "--sae", "tow"),
            r"sae tow: no experiment of this store has it \(there are one, other\)\.",
        ),
        (
            ("none.jpg", "--sae", "one"),
            r"none\.jpg: cannot be read as an image \(No such file or directory\)\.",
        ),
        (("BROKEN", "--sae", "one"), r"broken\.jpg: cannot be read as an image \(is no image of the formats"),
        (
            ("LARGE", "--sae", "one"),
            r"large\.png: cannot be read as an image \(has more than 100,000,000 pixels",
        ),
        (("PHOTO", "--sae", "one", "--to", "PHOTO"), r"--to .*my photo\.jpg: is a file; give a folder\."),
    ],
)
def test_bad_input_is_a_sentence(
    store: Path, photos: list[Path], tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    if "LARGE" in arguments:
        Image.new("1", (10_001, 10_000)).save(tmp_path / "large.png")
    known = {"PHOTO": photos[0], "BROKEN": tmp_path / "broken.jpg", "LARGE": tmp_path / "large.png"}
    found = sentence(patchsae("encode", *(known.get(one, one) for one in arguments), "--store", store))
    assert re.search(words, found), found
