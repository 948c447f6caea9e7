"""`patchsae init`: what it writes suits the folder, is an experiment, and runs as it is."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from patchsae.flows.cli.app import app
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import Experiment, load
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.store import Store


def draw(folder: Path, n: int) -> None:
    folder.mkdir(parents=True)
    dice = random.Random(folder.name)
    for i in range(n):
        Image.effect_noise((40 + i, 50), dice.randrange(20, 90)).convert("RGB").save(folder / f"a, {i}.png")


def init(folder: Path, target: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["init", str(folder), "--output", str(target), *options])


def made(folder: Path, target: Path, *options: str) -> Experiment:
    result = init(folder, target, *options)
    assert result.exit_code == 0, result.output
    assert f"patchsae plan {target}" in result.stderr
    return load(str(target))


def test_a_folder_per_class_runs(tmp_path: Path, tiny_checkpoint: Path) -> None:
    for name in ("cats", "dogs & co"):
        draw(tmp_path / "photos" / name, 8)
    target = tmp_path / "photos.yaml"
    own = ("--model", "patchsae-tiny", "--checkpoint", str(tiny_checkpoint))
    made(tmp_path / "photos", target, *own)
    assert "16 images (12 train, 4 test) of 2 classes with 8 images each" in target.read_text()
    built = run(work_on(Store(tmp_path / "store"), load(str(target), ["train.n_steps=5"])), Runtime())
    results = {"statistics/statistics", "reconstruction/reconstruction", "masking/masking"}
    assert {"train/topk", *results} <= set(built)


def test_shapesclip_is_not_asked_for_words_that_it_does_not_know(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        draw(tmp_path / "photos" / name, 3)
    target = tmp_path / "photos.yaml"
    made(tmp_path / "photos", target, "--backbone", "shapesclip")
    assert "statistics/statistics" in run(
        work_on(Store(tmp_path / "store"), load(str(target), ["train.n_steps=5"])), Runtime()
    )


def test_images_without_folders_get_a_list(tmp_path: Path) -> None:
    draw(tmp_path / "photos", 10)
    experiment = made(tmp_path / "photos", tmp_path / "mine.yaml")
    records = experiment.datasets["images"].build().records()
    assert sorted(record.split for record in records) == ["test"] * 2 + ["train"] * 8
    assert {record.class_name for record in records} == {"photos"}
    assert "masking" not in experiment.evaluations


def test_an_image_beside_the_class_folders_is_left_out_as_in_a_run(tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "cats", 3)
    draw(tmp_path / "photos" / ".cache", 9)
    for name in ("stray.png", "._stray.png"):
        shutil.copy(tmp_path / "photos" / "cats" / "a, 0.png", tmp_path / "photos" / name)
    target = tmp_path / "mine.yaml"
    experiment = made(tmp_path / "photos", target, "--backbone", "shapesclip")
    assert {record.class_name for record in experiment.datasets["images"].build().records()} == {"cats"}
    assert "1 image beside the class folders is left out, such as stray.png." in target.read_text()


def test_paths_from_another_folder_and_whole_numbers_are_written_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "photos" / "cats", 100)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    made(Path("../photos"), Path("mine.yaml"), "--backbone", "shapesclip")
    text = Path("mine.yaml").read_text()
    assert "of 1 class with 100 images each" in text
    assert f'root: "{tmp_path}/photos"' in text
    assert re.search(r"n_steps: [1-9]00 ", text) and re.search(r"lr_warmup_steps: \d+$", text, re.MULTILINE)


def test_splits_are_seen(tmp_path: Path) -> None:
    for split in ("Train", "val"):
        draw(tmp_path / "photos" / split / "cats", 3)
    experiment = made(tmp_path / "photos", tmp_path / "mine.yaml", "--backbone", "shapesclip")
    assert (
        sorted(r.split for r in experiment.datasets["images"].build().records())
        == ["test"] * 3 + ["train"] * 3
    )


def test_where_nothing_is_left_for_tests_the_training_images_serve(tmp_path: Path) -> None:
    draw(tmp_path / "photos" / "cats", 1)
    experiment = made(tmp_path / "photos", tmp_path / "mine.yaml")
    assert experiment.evaluations["reconstruction"].split == "train"  # type: ignore[attr-defined]


def test_more_images_get_a_wider_sae_and_larger_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "few" / "cats", 5)
    few = made(tmp_path / "few", tmp_path / "few.yaml", "--backbone", "shapesclip").saes["topk"]
    (tmp_path / "many" / "cats").mkdir(parents=True)
    for i in range(3000):
        (tmp_path / "many" / "cats" / f"{i}.jpg").touch()
    many = made(tmp_path / "many", tmp_path / "many.yaml", "--backbone", "shapesclip").saes["topk"]
    for field in ("expansion", "batch_size", "n_steps"):
        assert getattr(many, field) > getattr(few, field), field
    assert many.lr < few.lr  # type: ignore[attr-defined]
    # Nothing of the files is known but their names, and that is said.
    assert "cannot be read" in (tmp_path / "many.yaml").read_text()


def test_a_download_is_announced_and_a_checkpoint_takes_its_place(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    draw(tmp_path / "photos" / "cats", 2)
    made(tmp_path / "photos", tmp_path / "a.yaml")
    assert "downloads the weights" in (tmp_path / "a.yaml").read_text()
    own = ("--model", "patchsae-tiny", "--checkpoint", str(tiny_checkpoint))
    experiment = made(tmp_path / "photos", tmp_path / "b.yaml", *own)
    assert experiment.backbones["clip"].location() == {"checkpoint": str(tiny_checkpoint)}
    assert "downloads" not in (tmp_path / "b.yaml").read_text()


def test_what_it_refuses(tmp_path: Path, tiny_checkpoint: Path) -> None:
    draw(tmp_path / "photos" / "cats", 2)
    target = tmp_path / "mine.yaml"

    def refused(folder: str, *options: str) -> str:
        result = init(tmp_path / folder, target, *options)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1, result.output
        return result.stderr

    assert "no such folder" in refused("nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in refused("empty")
    assert "did you mean" in refused("photos", "--model", "ViT-B-161")
    assert "no such file" in refused("photos", "--checkpoint", "weights.pt")
    told = refused("photos", "--checkpoint", str(tiny_checkpoint))
    assert (
        "say with --model NAME which model it is; its tensors are those of " in told
        and "patchsae-tiny" in told
    )
    assert "comes with its weights" in refused("photos", "--backbone", "shapesclip", "--model", "ViT-B-16")
    assert not target.exists()
    target.write_text("precious")
    assert "--force" in refused("photos") and target.read_text() == "precious"
    assert init(tmp_path / "photos", target, "--force").exit_code == 0
    assert load(str(target)).name == "mine"
    for name in ("a.png", "b.png"):
        shutil.copy(tmp_path / "photos" / "cats" / "a, 0.png", tmp_path / "photos" / name)
    assert "holds 2 images beside folders with 2 images" in refused("photos", "--force")
