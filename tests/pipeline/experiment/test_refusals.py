"""A plan refuses what a run would refuse, with the run's sentence, before weights or images are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.backbones.models.shapes_clip import ShapesClipConfig
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import causes, check_can_run, display_state, work_on
from patchsae.pipeline.experiment.run import groups, run
from patchsae.pipeline.saes.files import save_files
from patchsae.pipeline.saes.sae import Sae
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store

TEXT = """
name: small
datasets:
  world: {kind: shapes, seed: 1, splits: {train: 48, test: 24}, label: colour}
  other: {kind: shapes, seed: 1, splits: {train: 48, test: 24}, label: shape}
backbones:
  clip: {kind: shapes_clip}
saes:
  one: {kind: topk, k: 4, dataset: world, backbone: clip, n_latents: 32, batch_size: 64, n_steps: 2}
evaluations:
  of-one: {kind: statistics, sae: one}
  masking: {kind: masking, statistics: of-one, ks: [1], n_random: 1}
"""
REFUSED = {
    "k": (("k: 4", "k: 33"), "train/one", "k is 33, but the SAE has 32 latents; set a smaller k."),
    "k of matryoshka": (("kind: topk, k: 4", "kind: matryoshka, k: 40"), "train/one", "k is 40, but"),
    "hook": (
        ("kind: shapes_clip", "kind: shapes_clip, extract: {hook_block: 6}"),
        "weights/clip",
        "hook_block: 6 is out of range for 6 blocks; give -6 to -1, or 0 to 5.",
    ),
    "tower": (
        ("kind: shapes_clip", "kind: open_clip, model: RN50, pretrained: openai"),
        "weights/clip",
        "its image tower is a ModifiedResNet, and only",
    ),
    "split": (
        ("k: 4", "k: 4, split: training"),
        "train/one",
        "split `training`: no image has it; this dataset has `train`, `test`.",
    ),
    "split of an evaluation": (("sae: one}", "sae: one, split: val}"), "statistics/of-one", "split `val`:"),
    "class": (
        ("sae: one}", "sae: one, classes: [purpel]}"),
        "statistics/of-one",
        "the dataset has no class `purpel`",
    ),
    "classes of another dataset": (
        ("ks: [1]", "ks: [1], dataset: other"),
        "masking/masking",
        "masking: the dataset has other classes",
    ),
    "missing checkpoint": (
        ("kind: shapes_clip", "kind: open_clip, model: ViT-B-16, checkpoint: gone.pt"),
        "weights/clip",
        "gone.pt: no such file",
    ),
    "missing SAE": (
        ("{kind: topk, k: 4, dataset: world, backbone: clip, n_latents: 32, batch_size: 64, n_steps: 2}",
         "{kind: imported, path: /gone, dataset: world, backbone: clip}"),
        "import/one",
        "/gone: there is no such file or folder",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Fails a test that loads a backbone."""
    if "indexed" not in request.fixturenames:
        for config in (ShapesClipConfig, OpenClipConfig):
            monkeypatch.setattr(config, "build", lambda *_: pytest.fail("the plan loaded weights"))


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store in which the images and weights are known. Read only."""
    store = Store(tmp_path_factory.mktemp("indexed") / "store")
    run(work_on(store, parse(TEXT, "small"), only=["index", "weights"]), Runtime())
    return store


def check(store: Store, text: str, address: str, sentence: str) -> None:
    work = work_on(store, parse(text, "small"))
    found = causes(work, work.planned)
    assert list(found) == [address] and sentence in found[address][0]
    # Everything that needs it is blocked too, and names it.
    for other, item in work.planned.items():
        is_blocked = any(work.planned[a].state == "blocked" for a in item.node.inputs.values())
        assert (other in found[address][1]) == (is_blocked and other != address), other
    with pytest.raises(UserError) as raised:
        check_can_run(work)
    assert str(raised.value).startswith(f"{address}: ") and sentence in str(raised.value)


@pytest.mark.parametrize("what", REFUSED)
def test_a_plan_refuses_it_before_anything_is_run(store: Store, what: str) -> None:
    (old, new), address, sentence = REFUSED[what]
    check(store, TEXT.replace(old, new), address, sentence)
    assert not store.root.exists()


@pytest.mark.parametrize(
    "what", ["k", "split", "split of an evaluation", "class", "classes of another dataset"]
)
def test_a_plan_refuses_it_when_images_and_weights_are_known(indexed: Store, what: str) -> None:
    (old, new), address, sentence = REFUSED[what]
    check(indexed, TEXT.replace(old, new), address, sentence)


def test_all_that_is_refused_is_told_at_once(store: Store) -> None:
    text = TEXT.replace("k: 4", "k: 33").replace("ks: [1]", "ks: [1], split: val")
    with pytest.raises(UserError) as raised:
        check_can_run(work_on(store, parse(text, "small")))
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == ["train/one", "masking/masking"]
    # What was not asked for is in nobody's way.
    check_can_run(work_on(store, parse(text, "small"), only=["index", "weights", "extract"]))


def test_images_in_folders_are_asked_for_their_splits_before_they_are_indexed(
    store: Store, tmp_path: Path
) -> None:
    for i in range(5):
        path = tmp_path / "photos" / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    text = TEXT.replace(
        "{kind: shapes, seed: 1, splits: {train: 48, test: 24}, label: colour}",
        f"{{kind: image_folder, root: {str(tmp_path / 'photos')!r}}}",
    )
    work = work_on(store, parse(text, "small"))
    assert causes(work, work.planned) == {}
    check(store, text.replace("k: 4", "k: 4, split: val"), "train/one", "this dataset has `train`, `test`.")


WORD = "ShapesCLIP does not know the word 'animals' in 'a photo of a animals and people.'; use only its 60 words: "


def photos(root: Path, *class_names: str) -> str:
    """`TEXT` with images of these classes in place of the shapes."""
    for name in class_names:
        (root / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (i, len(name), 0)).save(root / name / f"{i}.png")
    world = "{kind: shapes, seed: 1, splits: {train: 48, test: 24}, label: colour}"
    return TEXT.replace(
        world, f"{{kind: image_folder, root: {str(root)!r}, prompts: ['a photo of a {{}}.']}}"
    )


def test_classes_that_the_text_tower_cannot_read_are_refused(store: Store, tmp_path: Path) -> None:
    text = photos(tmp_path / "photos", "animals_and_people", "circle")
    check(store, text, "classifier/world-clip-dataset", WORD)
    tuned = "{kind: wise_ft, backbone: base, checkpoint: tuned.pt}\n  base: {kind: shapes_clip}"
    planned = work_on(store, parse(text.replace("{kind: shapes_clip}", tuned), "small")).planned
    assert WORD in planned["classifier/world-clip-dataset"].why
    assert not store.root.exists()


def test_classes_of_an_index_are_refused_as_a_run_refuses_them(
    indexed: Store, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # `indexed` lets this test load weights.
    text = photos(tmp_path / "photos", "animals_and_people", "circle")
    run(work_on(store, parse(text, "small"), only=["index", "weights"]), Runtime())
    check(store, text, "classifier/world-clip-dataset", WORD)
    told = work_on(store, parse(text, "small")).planned["classifier/world-clip-dataset"].why
    monkeypatch.setattr(ShapesClipConfig, "check_classes", lambda *_: None)
    with pytest.raises(UserError) as raised:
        for group in groups(work_on(store, parse(text, "small"), only=["classifier"]), Runtime()):
            group.build()
    assert str(raised.value) == told


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("a drawing of a {}.", "ShapesCLIP does not know the word 'drawing' in 'a drawing of a red.'"),
        ("a {}" + 30 * " a", " words; ShapesCLIP reads at most "),
    ],
)
def test_prompts_that_the_text_tower_cannot_read_are_refused(
    store: Store, template: str, sentence: str
) -> None:
    text = TEXT.replace("n_random: 1}", f"n_random: 1, prompts: {{templates: ['{template}']}}}}")
    work = work_on(store, parse(text, "small"))
    (address,) = causes(work, work.planned)
    assert address.startswith("classifier/world-clip-")
    check(store, text, address, sentence)


@pytest.mark.parametrize("style", ["patchsae", "saelens", "dictionary_learning", "saev"])
def test_an_imported_sae_of_another_width_is_refused_by_its_header(
    store: Store, tmp_path: Path, style: str
) -> None:
    def sae(width: int) -> Sae:
        return Sae(torch.rand(width, 40), torch.zeros(40), torch.rand(40, width), torch.zeros(width))

    text = TEXT.replace(
        "{kind: topk, k: 4, dataset: world, backbone: clip, n_latents: 32, batch_size: 64, n_steps: 2}",
        f"{{kind: imported, path: {str(tmp_path)!r}, dataset: world, backbone: clip}}",
    )
    for name, data in save_files(sae(96), style).items():
        (tmp_path / name).write_bytes(data)
    check(store, text, "import/one", "takes 96 channels and the backbone's activations have 128")
    for name, data in save_files(sae(128), style).items():
        (tmp_path / name).write_bytes(data)
    work = work_on(store, parse(text, "small"))
    assert causes(work, work.planned) == {}
    assert work.planned["import/one"].prediction.facts["n_latents"] == 40


def test_an_artifact_that_is_there_is_no_longer_asked_for(indexed: Store) -> None:
    """What is in the store is used, whatever a later version of the program would refuse."""
    text = TEXT.replace("kind: shapes_clip", "kind: shapes_clip, extract: {hook_block: 6}")
    planned = work_on(indexed, parse(text, "small")).planned
    assert planned["weights/clip"].state == "cached"
    assert planned["extract/world-clip"].state == "blocked"


def test_what_is_blocked_is_not_said_to_run_again(indexed: Store) -> None:
    text = TEXT.replace("kind: shapes_clip", "kind: shapes_clip, extract: {hook_block: 6}")
    shown = work_on(indexed, parse(text, "small"), rerun=["weights", "extract"]).to_write()
    assert display_state(shown["weights/clip"]) == "to run"
    assert shown["weights/clip"].why == "asked to run again"
    assert display_state(shown["extract/world-clip"]) == "blocked"
    assert "hook_block" in shown["extract/world-clip"].why
