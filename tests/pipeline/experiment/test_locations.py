"""A path in a file is relative to that file, one in a `--set` to the working directory; both end up absolute."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

import patchsae
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import Experiment, load, parse
from patchsae.pipeline.experiment.kinds import KINDS
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store

YAML = """
name: photos
datasets:
  photos: {kind: image_folder, root: my photos, csv: lists/all.csv}
  plain: {kind: image_folder, root: ../elsewhere}
  home: {kind: image_folder, root: ~/photos}
  whole: {kind: image_folder, root: /data/photos}
backbones:
  clip: {kind: open_clip, model: ViT-B-32, checkpoint: weights/clip.pt}
  tuned: {kind: wise_ft, backbone: clip, checkpoint: weights/tuned.pt}
  tagged: {kind: open_clip, model: ViT-B-32, pretrained: openai}
saes:
  theirs: {kind: imported, path: saes/theirs, format: saelens, dataset: photos, backbone: clip}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of an experiment; the working directory is another one."""
    for name in ("my experiments", "cwd"):
        (tmp_path / name).mkdir()
    (tmp_path / "my experiments" / "photos.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "my experiments"


def paths(experiment: Experiment) -> dict[str, str]:
    return {
        f"{name}.{field}": getattr(config, field)
        for section in (experiment.datasets, experiment.backbones, experiment.saes)
        for name, config in section.items()
        for field in sorted(config.path_fields())
        if getattr(config, field) is not None
    }


def test_paths_in_a_file_are_relative_to_its_folder(folder: Path) -> None:
    root = folder.parent
    expected = {
        "photos.csv": f"{folder}/lists/all.csv",
        "photos.root": f"{folder}/my photos",
        "plain.root": f"{root}/elsewhere",
        "home.root": f"{root}/home/photos",
        "whole.root": "/data/photos",
        "clip.checkpoint": f"{folder}/weights/clip.pt",
        "tuned.checkpoint": f"{folder}/weights/tuned.pt",
        "theirs.path": f"{folder}/saes/theirs",
    }
    for name in (str(folder / "photos.yaml"), "../my experiments/photos.yaml"):
        experiment = load(name)
        assert paths(experiment) == expected
        assert experiment.backbones["tagged"].pretrained == "openai"  # type: ignore[attr-defined]
        assert experiment.saes["theirs"].format == "saelens"  # type: ignore[attr-defined]


def test_paths_in_overrides_are_relative_to_the_working_directory(folder: Path) -> None:
    given = load(
        str(folder / "photos.yaml"),
        [
            "datasets.photos.root=here",
            "index/plain.root=../there",
            "datasets.new={kind: image_folder, root: ~/new}",
            "saes.theirs.path=x y",
        ],
    )
    found = paths(given)
    assert found["photos.root"] == f"{folder.parent}/cwd/here"
    assert found["plain.root"] == f"{folder.parent}/there"
    assert found["new.root"] == f"{folder.parent}/home/new"
    assert found["theirs.path"] == f"{folder.parent}/cwd/x y"
    assert found["photos.csv"] == f"{folder}/lists/all.csv"


def test_a_kind_that_an_override_gives_leaves_the_path_relative_to_the_file(folder: Path) -> None:
    file = folder / "late.yaml"
    file.write_text(
        "name: late\ndatasets: {photos: {root: photos}}\nbackbones: {clip: {kind: shapes_clip}}\n"
    )
    assert paths(load(str(file), ["datasets.photos.kind=image_folder"])) == {
        "photos.root": f"{folder}/photos"
    }


def test_presets_are_relative_to_the_working_directory(folder: Path) -> None:
    assert paths(load("imagenet-vit-b16")) == {"imagenet.root": f"{folder.parent}/cwd/imagenet"}


def test_a_path_that_was_relative_to_the_working_directory_is_told(folder: Path) -> None:
    (folder.parent / "cwd" / "my photos").mkdir()
    with pytest.raises(UserError) as caught:
        load(str(folder / "photos.yaml"))
    assert str(caught.value) == (
        f"{folder}/photos.yaml: `datasets.photos.root` is 'my photos', which is relative to the folder of that file: "
        f"{folder}/my photos is not there, but {folder.parent}/cwd/my photos is; write '../cwd/my photos', or the "
        "whole path."
    )
    (folder / "my photos").mkdir()
    assert paths(load(str(folder / "photos.yaml")))["photos.root"] == f"{folder}/my photos"


def test_a_user_without_a_home_is_one_sentence(folder: Path) -> None:
    text = YAML.replace("~/photos", "~nobody-of-that-name/photos")
    with pytest.raises(UserError, match=r"x: `datasets.home.root` is '~nobody.*no such user has a home"):
        parse(text, "x")


def test_parents_of_links_are_those_of_where_they_lead(folder: Path) -> None:
    (folder.parent / "far" / "deep").mkdir(parents=True)
    (folder.parent / "far" / "pictures").mkdir()
    (folder / "link").symlink_to(folder.parent / "far" / "deep")
    text = YAML.replace("../elsewhere", "link/../pictures")
    found = Path(paths(parse(text, "x", folder=folder))["plain.root"])
    assert found.is_dir() and found.samefile(folder.parent / "far" / "pictures")


def test_every_path_of_a_config_is_marked() -> None:
    marked = {
        (kind, f) for kinds in KINDS.values() for kind, config in kinds.items() for f in config.path_fields()
    }
    paths_of_today = {
        ("image_folder", "root"),
        ("image_folder", "csv"),
        ("open_clip", "checkpoint"),
        ("wise_ft", "checkpoint"),
        ("imported", "path"),
    }
    assert paths_of_today <= marked
    assert not {("open_clip", "pretrained"), ("imported", "format")} & marked


SMALL = """
name: NAME
datasets: {photos: {kind: image_folder, root: my photos}}
backbones: {clip: {kind: shapes_clip}}
saes: {sae: {kind: topk, k: 4, n_latents: 16, batch_size: 64, n_steps: 2, dataset: photos, backbone: clip}}
evaluations: {statistics: {kind: statistics, sae: sae}}
"""


def test_equal_files_in_two_folders_are_two_datasets(tmp_path: Path, store: Store) -> None:
    """Although names, sizes and times of their images are equal."""
    found = {}
    for number, name in enumerate(("one", "two")):
        images = tmp_path / name / "my photos" / "class a"
        images.mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (64, 64), (40 * i, 100 * number, 0)).save(images / f"{i}.bmp")
            os.utime(images / f"{i}.bmp", (10**9, 10**9))
        (tmp_path / name / "photos.yaml").write_text(SMALL.replace("NAME", name))
        work = work_on(store, load(str(tmp_path / name / "photos.yaml")))
        found[name] = run(work, Runtime())
    keys = [{address: artifact.key for address, artifact in found[name].items()} for name in found]
    assert all(keys[0][a] != keys[1][a] for a in ("index/photos", "extract/photos-clip", "train/sae"))
    # The store says where the images are, without the files and from any working directory.
    for name in found:
        record = store.records.all()[name]
        assert record.experiment is not None
        assert record.experiment["datasets"]["photos"]["root"] == f"{tmp_path}/{name}/my photos"
        opened = patchsae.open(store.root).sae("sae", experiment=name)
        latent = opened.latents.filter(~pl.col("dead")).collect()["latent"][0]
        assert all(Path(path).is_file() and f"/{name}/" in path for path in opened.top_images(latent)["path"])
