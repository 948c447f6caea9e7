"""`patchsae data`: what is there, what is missing, where to get it, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchsae.flows.cli import completion
from patchsae.pipeline.images.coop import fetch
from patchsae.pipeline.images.coop.facts import FACTS
from tests.support.command import patchsae, sentence
from tests.support.coop_data import tiny


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pets are whole, images of DTD are missing, and nothing else is there."""
    root = tmp_path / "my data"
    tiny(monkeypatch, root, "oxford_pets")
    tiny(monkeypatch, root, "dtd")
    (root / "dtd" / "images" / "val_1" / "val1000.jpg").unlink()
    return root


def test_every_data_set_has_a_row(root: Path) -> None:
    shown = patchsae("data", "--root", root)
    assert shown.exit_code == 0
    rows = {line.split()[0]: line for line in shown.stdout.splitlines() if line.split()}
    assert rows.keys() >= FACTS.keys()
    assert (
        "found" in rows["oxford_pets"]
        and "3 classes, 27 images: train 12, val 6, test 9" in rows["oxford_pets"]
    )
    assert (
        "incomplete" in rows["dtd"]
        and "names 1 image that is not there: dtd/images/val_1/val1000" in rows["dtd"]
    )
    assert "missing" in rows["imagenet"] and f"{root}/imagenet: no such folder." in rows["imagenet"]
    assert f"`patchsae data NAME --root '{root}'` says where to get" in shown.stdout


def test_what_is_missing_is_explained_and_fails(root: Path) -> None:
    shown = patchsae("data", "oxford_pets", "dtd", "sun397", "imagenet", "--root", root)
    assert shown.exit_code == 1
    *_, dtd, sun, imagenet = shown.stdout.split("\n\n")
    assert "oxford_pets (" not in shown.stdout
    assert f"{root}/dtd/ with images/, split_zhou_DescribableTextures.json" in dtd
    assert (
        f"patchsae data dtd --root '{root}' --fetch" in dtd
        and "https://www.robots.ox.ac.uk/~vgg/data/dtd/" in dtd
    )
    assert "its original download is dead" in sun and f"{fetch.MIRROR}/sun397.zip" in sun
    assert "--fetch" not in imagenet and "needs an account" in imagenet and "images/train/" in imagenet
    assert patchsae("data", "oxford_pets", "--root", root).exit_code == 0


def test_a_remark_is_shown_for_what_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(monkeypatch, root, "imagenet_r")
    assert "class names" not in patchsae("data", "imagenet_r", "--root", root).stdout
    (root / "imagenet-rendition" / "classnames.txt").unlink()
    shown = patchsae("data", "imagenet_r", "--root", root)
    assert shown.exit_code == 0 and "imagenet_r: class names are open_clip's, since" in shown.stdout


def test_rows_come_as_json(root: Path) -> None:
    (root / "dtd" / "split_zhou_DescribableTextures.json").unlink()
    shown = patchsae("data", "dtd", "oxford_pets", "--root", root, "--json")
    dtd, pets = json.loads(shown.stdout)
    assert shown.exit_code == 1 and (dtd["state"], pets["state"]) == ("incomplete", "found")
    assert dtd["missing"] == ["split_zhou_DescribableTextures.json"] and dtd["mirror"].endswith("dtd.zip")
    assert pets["splits"] == {"train": 12, "val": 6, "test": 9} and pets["problem"] == ""


def test_what_is_asked_for_wrongly_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean `oxford_pets`" in sentence(patchsae("data", "oxfordpets", "--root", root))
    assert "--fetch: fetches the data sets that are named" in sentence(
        patchsae("data", "--fetch", "--root", root)
    )
    assert "is not in the mirror" in sentence(patchsae("data", "imagenet", "--fetch", "--root", root), 1)
    assert "move it away" in sentence(patchsae("data", "dtd", "--fetch", "--root", root), 1)
    assert patchsae("data", "oxford_pets", "--fetch", "--root", root).exit_code == 0


def test_the_folder_may_be_in_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHSAE_DATA", str(root))
    assert patchsae("data", "oxford_pets").exit_code == 0
    assert completion.coop_names("imagenet_") == ["imagenet_sketch", "imagenet_a", "imagenet_r"]
