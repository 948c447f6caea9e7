"""What a plan predicts, before anything is there, against what the run then took."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import pytest
from PIL import Image

from patchsae.pipeline.core.machine import Machine
from patchsae.pipeline.core.prediction import Probe
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import PRESETS, load, parse
from patchsae.pipeline.experiment.forecast import bytes_at_once, seconds_of
from patchsae.pipeline.experiment.plan import Planned
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import groups, run
from patchsae.pipeline.images.datasets.coop import CoopConfig
from patchsae.storage.checkpoints import Checkpoints
from patchsae.storage.store import Store
from tests.support.coop_data import tiny

TEXT = """
name: small
datasets:
  world: {kind: shapes, seed: 1, splits: {train: 96, test: 48}, label: colour}
backbones:
  clip: {kind: shapes_clip}
saes:
  relu: {kind: relu_l1, dataset: world, backbone: clip, n_latents: 256, batch_size: 256, n_steps: 40, lr: 1e-3}
  topk: {kind: topk, k: 8, dataset: world, backbone: clip, n_latents: 256, batch_size: 256, n_steps: 40}
evaluations:
  statistics: {kind: statistics, sae: topk}
  masking: {kind: masking, statistics: statistics, ks: [1, 5, 20], n_random: 2}
  frontier: {kind: frontier}
"""


def planned(store: Store, text: str = TEXT) -> dict[str, Planned]:
    return work_on(store, parse(text, "small")).planned


def test_bytes_of_every_stage_are_predicted_within_a_factor_of_two(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = planned(store)
    most: dict[Path, int] = {}
    save = Checkpoints.save

    def watched(checkpoints: Checkpoints, *given: object) -> None:
        # While a checkpoint is written, the two before it are still there.
        n_before = sum(path.stat().st_size for path in checkpoints.folder.glob("*"))
        save(checkpoints, *given)
        newest = max(checkpoints.folder.glob("*"), key=lambda path: path.name)
        folder = checkpoints.folder.parent
        most[folder] = max(most.get(folder, 0), n_before + newest.stat().st_size)

    monkeypatch.setattr(Checkpoints, "save", watched)
    for group in groups(work_on(store, parse(TEXT, "small")), Runtime(checkpoint_seconds=0.0)):
        group.build()
    after = planned(store)
    ratios = {}
    for address, item in after.items():
        assert item.state == "cached" and item.key is not None
        artifact = store.at(item.node.stage.name, item.key)
        ratios[address] = (before[address].n_bytes or 0) / artifact.n_bytes()
        if artifact.path in most:
            ratios[f"{address}, checkpoints"] = (
                before[address].prediction.n_scratch_bytes / most[artifact.path]
            )
    assert len(ratios) == len(after) + 2
    assert {address: ratio for address, ratio in ratios.items() if not 0.5 < ratio < 2} == {}
    # What the disk must have room for includes the checkpoints of both SAEs, which are trained in one pass.
    stay, at_once = bytes_at_once(before.values())
    assert at_once >= stay + 0.5 * sum(most.values())


@pytest.mark.parametrize(
    ("n_images", "sae"),
    [(8, "k: 4, n_latents: 4096"), (8, "k: 32, n_latents: 2048")],
)
def test_tables_are_predicted_small_where_few_images_leave_most_latents_dead(
    store: Store, n_images: int, sae: str
) -> None:
    text = TEXT.replace("train: 96, test: 48", f"train: {n_images}, test: 4")
    text = text.replace("k: 8", sae.split(",")[0]).replace("n_latents: 256", sae.split(", ")[1])
    only = ["index", "weights", "extract", "train/topk", "statistics"]
    before = planned(store, text)["statistics/statistics"]
    run(work_on(store, parse(text, "small"), only=only), Runtime())
    item = planned(store, text)["statistics/statistics"]
    assert item.state == "cached" and item.key is not None and before.n_bytes is not None
    assert 0.5 < before.n_bytes / store.at("statistics", item.key).n_bytes() < 2


class _Counted(Machine):
    """A machine that does everything in one second per unit, but takes no time for what is the same on any."""

    def _of(self, probe: Probe) -> float | None:
        return 0.0 if probe.is_constant or probe.name.startswith("disk") else 1.0


def seconds(store: Store, text: str = TEXT) -> dict[str, float]:
    found = {address: seconds_of(item, store, _Counted()) for address, item in planned(store, text).items()}
    assert None not in found.values()
    return {address: value or 0.0 for address, value in found.items()}


def test_time_follows_the_work_of_each_stage(store: Store) -> None:
    once = seconds(store)
    assert all(
        value > 0 for address, value in once.items() if not address.startswith(("frontier", "attributes"))
    )
    longer = seconds(store, TEXT.replace("n_steps: 40", "n_steps: 80"))
    assert longer["train/topk"] == pytest.approx(2 * once["train/topk"])
    assert longer["extract/world-clip"] == once["extract/world-clip"]
    more = seconds(store, TEXT.replace("train: 96, test: 48", "train: 192, test: 96"))
    for address in ("index/world", "statistics/statistics"):
        assert more[address] == pytest.approx(2 * once[address])
    # Every k of every ranking and mode is a pass through the rest of the tower.
    ks = seconds(store, TEXT.replace("[1, 5, 20]", "[1, 5, 20, 40, 80, 100]"))
    assert 1.2 < ks["masking/masking"] / once["masking/masking"] < 2
    deeper = seconds(store, TEXT.replace("kind: shapes_clip", "kind: shapes_clip, extract: {hook_block: 0}"))
    assert deeper["extract/world-clip"] < once["extract/world-clip"]
    assert deeper["masking/masking"] > once["masking/masking"]


def test_what_was_measured_before_costs_a_plan_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _Counted()
    items = planned(store).values()

    def measured(n: int) -> bytes:
        raise AssertionError("random bytes are made for a disk whose speed is known")

    monkeypatch.setattr(os, "urandom", measured)
    assert None not in [seconds_of(item, store, machine) for item in items]


def test_a_rerun_of_one_after_another_needs_room_for_the_largest(store: Store) -> None:
    run(work_on(store, parse(TEXT, "small"), only=["index", "weights", "extract"]), Runtime())
    work = work_on(store, parse(TEXT, "small"), rerun=["index", "extract"], only=["index", "extract"])
    items = work.to_write()
    sizes = {a: item.n_bytes or 0 for a, item in items.items()}
    written, at_once = bytes_at_once(items.values())
    assert written == sum(sizes.values())
    # While an artifact is built again, the old one is there. Of those before it, only the new ones are.
    assert max(sizes.values()) <= at_once < max(sizes.values()) + 10_000
    twice = [*items.values(), *items.values(), *items.values()]
    assert bytes_at_once(twice)[1] < 1.5 * at_once


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_stage_of_every_preset_predicts_bytes_and_time(
    store: Store, tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = []
    named = [one.name for one in load(preset).datasets.values() if isinstance(one, CoopConfig)]
    for name in named:
        tiny(monkeypatch, tmp_path, name)
    if named:
        overrides = [f"index.root={tmp_path}"]
        # There are 4 images per class.
        overrides += ["adapt.shots=2"] if load(preset).adapters else []
    if preset.startswith("imagenet"):
        image = io.BytesIO()
        Image.new("RGB", (32, 32)).save(image, "PNG")
        for split, number in itertools.product(("train", "val"), range(1000)):
            folder = tmp_path / "imagenet" / split / f"n{number:08}"
            folder.mkdir(parents=True)
            (folder / "image.png").write_bytes(image.getvalue())
        overrides = [f"datasets.imagenet.root={tmp_path}/imagenet", "datasets.imagenet.n_images=2000"]
    experiment = load(preset, overrides)
    items = work_on(store, experiment).planned
    assert {item.state for item in items.values()} == {"run"}
    assert [address for address, item in items.items() if item.n_bytes is None] == []
    assert [address for address, item in items.items() if seconds_of(item, store, _Counted()) is None] == []


def test_few_steps_of_a_relu_sae_are_predicted_as_dense_ones(store: Store) -> None:
    # In each of the first 317 steps, whose rates add up to 0.1, it takes five dense products, and later one.
    first, later = "n_steps: 40, lr: 1e-3", "n_steps: 4000, lr: 1e-3"
    text = TEXT.replace("kind: statistics, sae: topk", "kind: statistics, sae: relu")
    few, many = planned(store, text), planned(store, text.replace(first, later))
    assert few["train/relu"].prediction.facts["l0"] == 128
    assert many["train/relu"].prediction.facts["l0"] == 64
    n_products = []
    for plan in (few, many):
        effort = plan["train/relu"].prediction.effort
        assert effort is not None
        n_products.append(sum(amount for probe, amount in effort if probe.name.startswith("products")))
    assert n_products[1] / n_products[0] == pytest.approx((4000 + 4 * 317) / (5 * 40))
    taken = seconds(store, text)
    assert taken["train/relu"] > 2 * taken["train/topk"]


def test_evaluations_are_predicted_by_the_l0_that_training_found(store: Store) -> None:
    dense = "statistics: {kind: statistics, sae: relu}"
    text = TEXT.replace("statistics: {kind: statistics, sae: topk}", dense)
    names = {
        address: {probe.name.split(",")[0] for probe, _ in item.prediction.effort or ()}
        for address, item in planned(store, text).items()
    }
    assert {"products of float32", "counting dense latents"} <= names["statistics/statistics"]
    assert "counting dense latents" not in {
        probe.name for probe, _ in planned(store)["statistics/statistics"].prediction.effort or ()
    }
    for group in groups(
        work_on(store, parse(text, "small"), ["index", "weights", "extract", "train"]), Runtime()
    ):
        group.build()
    item = planned(store, text)["train/relu"]
    assert item.state == "cached" and item.key is not None
    l0 = store.at("train", item.key).manifest.summary["l0"]
    assert isinstance(l0, float) and l0 > 0.1 * 256


def test_the_speed_of_a_machine_is_measured_once_and_remembered(tmp_path: Path) -> None:
    n_measured = []
    probe = Probe("something", lambda: n_measured.append(1) or 0.5)
    file = tmp_path / "cache" / "speed.json"
    for _ in range(2):
        machine = Machine(file)
        assert machine.seconds([(probe, 4)]) == 2.0
        machine.remember()
    assert len(n_measured) == 1
    # What is no figure is measured anew, and what cannot be measured is not known.
    file.write_text('{"something": ')
    assert Machine(file).seconds([(probe, 4)]) == 2.0 and len(n_measured) == 2
    broken = Probe("broken", lambda: (_ for _ in ()).throw(OSError()))
    assert Machine(file).seconds([(broken, 1)]) is None
