"""What a plan says of why a stage would run, and of what is only perhaps to run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment import earlier
from patchsae.pipeline.experiment.damage import drop_damaged, verify
from patchsae.pipeline.experiment.experiment import Experiment, parse
from patchsae.pipeline.experiment.request import display_state, work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.store import Store
from tests.pipeline.experiment.test_upkeep import flip

TEXT = """
name: {name}
datasets:
  photos: {{kind: image_folder, root: {root!r}}}
backbones:
  tiny: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}
saes:
  one: {{kind: topk, k: 4, dataset: photos, backbone: tiny, n_latents: 32, batch_size: 64, n_steps: 2}}
evaluations:
  of-one: {{kind: statistics, sae: one}}
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(6):
        path = tmp_path / "photos" / "a" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (i, 9, i)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def text(photos: Path, tiny_checkpoint: Path) -> str:
    return TEXT.format(name="small", root=str(photos), checkpoint=str(tiny_checkpoint))


@pytest.fixture
def experiment(store: Store, text: str) -> Experiment:
    """An experiment that was run."""
    run(work_on(store, parse(text, "small")), Runtime())
    return parse(text, "small")


def told(store: Store, experiment: Experiment) -> dict[str, tuple[str, str]]:
    """Address -> state and reason, of what is not cached."""
    planned = work_on(store, experiment).planned
    return {a: (display_state(item), item.why) for a, item in planned.items() if item.state != "cached"}


def test_nothing_is_compared_with_the_artifacts_of_another_dataset_or_backbone(
    store: Store, experiment: Experiment, text: str
) -> None:
    other = """
name: other
datasets: {digits: {kind: digits, n_images: 40}}
backbones: {clip: {kind: shapes_clip}}
saes:
  one: {kind: topk, k: 5, dataset: digits, backbone: clip, n_latents: 32, batch_size: 64, n_steps: 2}
evaluations: {}
"""
    whys = told(store, parse(other, "other"))
    assert {why for _, why in whys.values()} == {
        "never run",
        "waits for index/digits",
        "waits for extract/digits-clip",
    }
    assert whys["index/digits"] == whys["weights/clip"] == ("to run", "never run")
    # With the same images and backbone the nearest SAE is near, in whatever experiment it is.
    same = parse(text.replace("name: small", "name: third").replace("k: 4", "k: 5"), "third")
    assert told(store, same)["train/one"] == ("to run", "k: 4 -> 5")
    relu = parse(text.replace("name: small", "name: third").replace("topk, k: 4", "relu_l1"), "third")
    assert told(store, relu)["train/one"] == ("to run", "never run")


def test_nothing_is_compared_with_the_artifacts_of_another_backbone_or_sae_on_the_same_images(
    store: Store, experiment: Experiment, text: str
) -> None:
    added = """
  small: {kind: shapes_clip}
saes:
  jump: {kind: jumprelu, dataset: photos, backbone: small, n_latents: 32, batch_size: 64, n_steps: 2}"""
    tests = """
  of-jump: {kind: statistics, sae: jump}
  tested: {kind: reconstruction, sae: SAE}"""
    first = text.rstrip() + tests.replace("\n  of-jump: {kind: statistics, sae: jump}", "").replace(
        "SAE", "one"
    )
    run(work_on(store, parse(first, "small")), Runtime())
    both = parse(
        text.rstrip().replace("\nsaes:", added)
        + tests.replace("SAE", "jump")
        + """
  jump-test: {kind: reconstruction, sae: jump}
""",
        "small",
    )
    run(work_on(store, both, only=["index", "weights", "extract", "train"]), Runtime())
    whys = {address: why for address, (_, why) in told(store, both).items()}
    # `tested` was run, with the other SAE; the others are new.
    assert "input sae changed" in whys.pop("reconstruction/tested")
    assert {address: why for address, why in whys.items() if why != "never run"} == {}
    assert any(a.startswith("classifier/photos-small") for a in whys) and "reconstruction/jump-test" in whys


def test_an_artifact_of_many_other_settings_is_no_earlier_one(
    store: Store, experiment: Experiment, text: str
) -> None:
    def why(sae: str) -> str:
        changed = text.replace("name: small", "name: third").replace(
            "{kind: topk, k: 4", "{kind: topk, " + sae
        )
        return told(store, parse(changed, "third"))["train/one"][1]

    assert why("k: 5, lr: 0.5") == "k: 4 -> 5; lr: 0.0004 -> 0.5"
    assert why("k: 5, lr: 0.5, seed: 3") == "never run"


def test_of_a_touched_image_only_the_index_is_said_to_run(
    store: Store, experiment: Experiment, photos: Path
) -> None:
    (photos / "a" / "0.png").touch()
    perhaps = ("perhaps", "only if index/photos changes")
    assert told(store, experiment) == {
        "index/photos": ("to run", "1 image changed (a/0.png)"),
        **dict.fromkeys(["extract/photos-tiny", "train/one", "statistics/of-one"], perhaps),
    }
    work = work_on(store, experiment)
    assert set(work.to_do()) == {"index/photos", "extract/photos-tiny", "train/one", "statistics/of-one"}
    before = {a.key: a.manifest.provenance["started"] for a in store.committed()}
    run(work, Runtime())
    made = {a.stage for a in store.committed() if a.key not in before}
    assert made == {"index"} and told(store, experiment) == {}
    assert {a.key: a.manifest.provenance["started"] for a in store.committed()}.items() >= before.items()


def test_an_experiment_of_the_same_name_on_other_images_is_told_by_its_own(
    store: Store, experiment: Experiment, photos: Path, text: str
) -> None:
    other = photos.parent / "other"
    for i in range(6):
        (other / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (9, i, i)).save(other / "a" / f"{i}.png")
    second = parse(text.replace(str(photos), str(other)), "small")
    # Those of the first one are still there, so these are others: what follows runs for certain.
    found = told(store, second)
    assert found["index/photos"][1].endswith(f"; images are in {other}, and were in {photos}")
    assert found["extract/photos-tiny"] == ("to run", "waits for index/photos")
    run(work_on(store, second), Runtime())
    (other / "a" / "0.png").touch()
    found = told(store, second)
    assert found["index/photos"] == ("to run", "1 image changed (a/0.png)")
    assert found["extract/photos-tiny"] == ("perhaps", "only if index/photos changes")
    assert told(store, experiment) == {}


def test_weights_of_another_tag_are_not_perhaps_the_same() -> None:
    clip = {"pretrained": "ViT-B-16:openai"}
    assert earlier._may_be_at(clip, clip)
    assert not earlier._may_be_at({"pretrained": "ViT-B-16:laion2b_s34b_b88k"}, clip)


def test_a_stage_that_runs_in_any_case_says_why_while_an_image_is_to_be_looked_at_again(
    store: Store, experiment: Experiment, photos: Path, text: str
) -> None:
    (photos / "a" / "0.png").touch()
    found = told(store, parse(text.replace("k: 4", "k: 5"), "small"))
    assert found["extract/photos-tiny"][0] == "perhaps"
    assert found["train/one"] == ("to run", "k: 4 -> 5")
    assert found["statistics/of-one"] == ("to run", "input sae changed")


def test_changed_added_and_removed_images_are_named_and_counted(
    store: Store, experiment: Experiment, photos: Path
) -> None:
    for i in (0, 1, 2):
        Image.new("RGB", (40, 40), (99, i, 0)).save(photos / "a" / f"{i}.png")
    (photos / "a" / "5.png").unlink()
    Image.new("RGB", (40, 40), (0, 99, 0)).save(photos / "a" / "new.png")
    assert told(store, experiment)["index/photos"][1] == (
        changes
        := "3 images changed (a/0.png, a/1.png, ...); 1 image added (a/new.png); 1 image removed (a/5.png)"
    )
    run(work_on(store, experiment, only=["index", "weights"]), Runtime())
    assert told(store, experiment)["extract/photos-tiny"] == ("to run", f"input images changed ({changes})")


def test_an_image_that_was_put_in_place_with_an_old_time_is_named(
    store: Store, experiment: Experiment, photos: Path
) -> None:
    Image.new("RGB", (40, 40), (99, 1, 0)).save(photos / "a" / "3.png")
    os.utime(photos / "a" / "3.png", (1e9, 1e9))
    assert told(store, experiment)["index/photos"][1] == "1 image changed (a/3.png)"


def test_a_touched_checkpoint_is_named(
    store: Store, text: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(tiny_checkpoint.read_bytes())
    experiment = parse(text.replace(str(tiny_checkpoint), str(own)), "small")
    run(work_on(store, experiment, only=["index", "weights", "extract"]), Runtime())
    own.touch()
    found = told(store, experiment)
    assert found["weights/tiny"] == ("to run", "own.safetensors changed")
    assert found["extract/photos-tiny"] == ("perhaps", "only if weights/tiny changes")
    assert found["train/one"] == ("to run", "never run")


def test_what_verify_dropped_is_not_said_to_have_changed(
    store: Store, experiment: Experiment, text: str
) -> None:
    # Another SAE beside it, with which the dropped one must not be compared.
    run(work_on(store, parse(text.replace("k: 4", "k: 5"), "small")), Runtime())
    [one] = [a for a in store.committed("train") if a.manifest.config["k"] == 4]
    flip(one.path / "sae.safetensors")
    drop_damaged(store, verify(store, Reporter()))
    assert told(store, experiment) == {
        "train/one": ("to run", "was damaged, and dropped by `verify --discard`"),
        "statistics/of-one": (
            "to run",
            "was dropped by `verify --discard` with the damaged one it was made from",
        ),
    }
    run(work_on(store, experiment), Runtime())
    assert told(store, experiment) == {} and not list((store.root / "dropped").iterdir())
