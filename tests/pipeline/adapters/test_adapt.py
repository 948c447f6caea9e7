"""The stage `adapt`: what it learns, that stopping it anywhere changes nothing, and where an adapter stands for a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch.nn.functional import normalize

from patchsae.pipeline.adapters import adapt
from patchsae.pipeline.backbones.towers.vit import ClipVit
from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.classification.classifier import load_classifier
from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import Experiment, parse
from patchsae.pipeline.images.indexed import indexed_images
from patchsae.pipeline.images.tables import labels_of, rows_of
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.nodes import plan, run_all, run_node

EXPERIMENT = """
name: adapted
datasets: {{digits: {{kind: digits, n_images: 300}}}}
backbones:
  tiny: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}
adapters:
  it: {{kind: {kind}, backbone: tiny, dataset: digits, shots: 4, steps: 12, batch_size: 16{fields}}}
"""
METHODS = {
    "lora": ", lr: 0.01",
    "fine_tune": ", lr: 0.01",
    "linear_probe": ", views: 2",
    "linear_probe fresh": ", views: fresh",
    "maple": ", lr: 0.01, depth: 1",
    "coop": ", lr: 0.01, views: 2",
    "promptsrc": ", lr: 0.01, depth_image: 2, depth_text: 1, prompts: {}",
}


def experiment_of(name: str, checkpoint: Path, more: str = "") -> Experiment:
    text = EXPERIMENT.format(checkpoint=str(checkpoint), kind=name.split()[0], fields=METHODS[name])
    return parse(text + more, "adapted")


def nodes_of(experiment: Experiment, *addresses: str) -> list[Node]:
    """The nodes with these addresses and all that they need."""
    nodes = {node.address: node for node in experiment.nodes()}
    wanted: set[str] = set()

    def add(address: str) -> None:
        wanted.add(address)
        for other in nodes[address].inputs.values():
            add(other)

    for address in addresses:
        add(address)
    return [node for address, node in nodes.items() if address in wanted]


@pytest.mark.parametrize("name", METHODS)
def test_stopped_and_continued_it_ends_in_the_same_bytes(
    name: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = nodes_of(experiment_of(name, tiny_checkpoint), "adapt/it")
    whole = run_all(Store(tmp_path / "whole"), nodes)["adapt/it"]
    store, every_step = Store(tmp_path / "stopped"), Runtime(checkpoint_seconds=0)
    run_all(store, nodes[:-1])
    planned = plan(store, nodes)
    steps = []
    take_step = adapt._Training.take_step

    def stopping(training: Any, *args: Any) -> float:
        if training.step in (3, 7) and training.step not in steps:
            steps.append(training.step)
            raise UserError("stopped")
        return take_step(training, *args)

    monkeypatch.setattr(adapt._Training, "take_step", stopping)
    for _ in range(2):
        with pytest.raises(UserError, match="stopped"):
            run_node(store, planned["adapt/it"], planned, every_step)
    found = run_node(store, planned["adapt/it"], planned, every_step)
    assert steps == [3, 7]
    assert found.read(adapt.FILE) == whole.read(adapt.FILE)
    curves = [one.scan("adapter_training").drop("artifact").collect() for one in (found, whole)]
    assert curves[0].equals(curves[1]) and curves[0]["step"].to_list() == list(range(1, 13))
    assert found.manifest.summary == whole.manifest.summary


@pytest.mark.parametrize("name", ["lora", "fine_tune", "linear_probe"])
def test_the_drawn_images_are_told_apart_better_than_before(
    name: str, tiny_checkpoint: Path, store: Store
) -> None:
    experiment = experiment_of(name, tiny_checkpoint)
    # Every step sees all drawn images, whole.
    every = {"views": 0, "batch_size": 40, "steps": 25}
    it = experiment.adapters["it"].model_copy(update=every)
    done = run_all(store, nodes_of(experiment.model_copy(update={"adapters": {"it": it}}), "adapt/it"))
    curve = done["adapt/it"].scan("adapter_training").collect()["loss"].to_list()
    assert curve[-1] < 0.98 * curve[0]


class Counting:
    """Counts the images that go through the image tower."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n = 0
        head = ClipVit.head

        def counted(tower: ClipVit, images: torch.Tensor) -> torch.Tensor:
            self.n += len(images)
            return head(tower, images)

        monkeypatch.setattr(ClipVit, "head", counted)


@pytest.mark.parametrize("name", ["linear_probe", "coop"])
def test_a_method_that_leaves_images_alone_trains_from_cached_features_without_the_image_tower(
    name: str, tiny_checkpoint: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = nodes_of(experiment_of(name, tiny_checkpoint), "adapt/it")
    counting = Counting(monkeypatch)
    run_all(store, nodes[:-1])
    assert counting.n == 40 * 2  # four images of ten classes, two views
    planned = plan(store, nodes)
    run_node(store, planned["adapt/it"], planned, Runtime())
    assert counting.n == 80


def test_with_fresh_views_every_step_needs_the_image_tower(
    tiny_checkpoint: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    run_all(store, nodes_of(experiment_of("linear_probe fresh", tiny_checkpoint), "adapt/it"))
    assert counting.n == 12 * 16


def logits(done: dict[str, Artifact], experiment: Experiment, backbone: str) -> torch.Tensor:
    """The logits of the first digits, computed from pixels with the whole adapted model."""
    node = next(n for n in experiment.nodes() if n.address == f"extract/digits-{backbone}")
    inputs = {role: done[address] for role, address in node.inputs.items()}
    model = load_backbone(node.config.backbone, inputs, "cpu")  # type: ignore[attr-defined]
    images = indexed_images(experiment.datasets["digits"], done["index/digits"], model.preprocess)
    with torch.inference_mode():
        features = model.tail(model.head(torch.stack([images[row] for row in range(20)])))
        embeddings, scale = load_classifier(done[f"classifier/digits-{backbone}-dataset"])
    return scale * normalize(features, dim=-1) @ embeddings.T


@pytest.mark.parametrize("name", ["lora", "fine_tune"])
def test_an_adapter_stands_wherever_a_backbone_does(name: str, tiny_checkpoint: Path, store: Store) -> None:
    more = """
saes:
  own: {kind: topk, dataset: digits, backbone: it, k: 4, n_latents: 64, n_steps: 5, batch_size: 64}
evaluations:
  before: {kind: reconstruction, sae: own, backbone: tiny}
  after: {kind: reconstruction, sae: own}
"""
    experiment = experiment_of(name, tiny_checkpoint, more)
    done = run_all(store, experiment.nodes())
    before, after = logits(done, experiment, "tiny"), logits(done, experiment, "it")
    assert (before - after).abs().max() > 0.05
    for evaluation, backbone in (("before", "tiny"), ("after", "it")):
        table = done[f"reconstruction/{evaluation}"].scan("reconstruction").collect()
        rows = rows_of(done["index/digits"], "test")
        labels = torch.from_numpy(labels_of(done["index/digits"])[rows[rows < 20]]).long()
        assert table.filter(pl.col("replaced") == "original")["n"].item() == len(rows)
        assert labels.numel() == 0 or logits(done, experiment, backbone).shape[1] == 10


def test_the_probe_shares_the_activations_of_its_backbone(tiny_checkpoint: Path) -> None:
    more = """
saes:
  one: {kind: topk, dataset: digits, backbone: tiny, k: 4, n_latents: 64, n_steps: 5, batch_size: 64}
evaluations:
  after: {kind: reconstruction, sae: one, backbone: it}
"""
    experiment = experiment_of("linear_probe", tiny_checkpoint, more)
    assert [n.address for n in experiment.nodes() if n.stage.name == "extract"] == ["extract/digits-tiny"]


def test_a_name_stands_for_one_model(tiny_checkpoint: Path) -> None:
    text = EXPERIMENT.format(checkpoint=str(tiny_checkpoint), kind="lora", fields="").replace(
        "  it:", "  tiny:"
    )
    with pytest.raises(UserError, match=r"`tiny` is in backbones and in adapters, .*; rename one"):
        parse(text, "adapted")


def test_an_adapter_needs_images_or_a_file(tiny_checkpoint: Path) -> None:
    text = EXPERIMENT.format(checkpoint=str(tiny_checkpoint), kind="lora", fields="").replace(
        "dataset: digits, ", ""
    )
    with pytest.raises(UserError, match="`dataset` is missing; name the images that it is adapted to"):
        parse(text, "adapted")


def test_adapters_can_be_swept(tiny_checkpoint: Path) -> None:
    text = (
        EXPERIMENT.format(checkpoint=str(tiny_checkpoint), kind="lora", fields="")
        + """
sweeps:
  few:
    base: {backbone: tiny, dataset: digits}
    grid: {kind: [lora, linear_probe], seed: [1, 2]}
"""
    )
    experiment = parse(text, "adapted")
    names = ["few-lora-seed1", "few-lora-seed2", "few-linear_probe-seed1", "few-linear_probe-seed2"]
    assert experiment.sweeps["few"] == tuple(names)
    assert set(experiment.adapters) == {"it", *names}


def test_a_sweep_has_saes_or_adapters(tiny_checkpoint: Path) -> None:
    text = (
        EXPERIMENT.format(checkpoint=str(tiny_checkpoint), kind="lora", fields="")
        + """
sweeps: {mixed: {base: {backbone: tiny, dataset: digits}, grid: {kind: [lora, topk]}}}
"""
    )
    with pytest.raises(UserError, match=r"`sweeps.mixed` has SAEs and adapters; write a sweep for each"):
        parse(text, "adapted")


def test_a_loss_that_is_not_finite_names_the_remedy(tiny_checkpoint: Path, store: Store) -> None:
    text = EXPERIMENT.format(checkpoint=str(tiny_checkpoint), kind="fine_tune", fields=", lr: 1.0e+30")
    with pytest.raises(UserError, match=r"the loss is nan in step .*; give the adapter a smaller `lr`"):
        run_all(store, nodes_of(parse(text, "adapted"), "adapt/it"))
