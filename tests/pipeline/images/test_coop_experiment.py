"""An experiment on a data set in CoOp's layout: few-shot draw, adapter, and the halves of its classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn.functional import normalize

from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.classification.classifier import load_classifier
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.images.tables import labels_of, rows_of
from patchsae.pipeline.results.tables import Catalog
from patchsae.storage.activations import Activations, to_float32
from patchsae.storage.store import Store
from tests.support.coop_data import rewrite, tiny
from tests.support.nodes import plan, run_all

EXPERIMENT = """
name: pets
datasets: {{pets: {{kind: coop, name: oxford_pets, root: {root!r}}}}}
backbones: {{clip: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}}}
adapters: {{probe: {{kind: linear_probe, backbone: clip, dataset: pets, classes: base, shots: {shots}, views: 0, epochs: 2}}}}
saes: {{topk: {{kind: topk, dataset: pets, backbone: clip, n_latents: 32, k: 4, batch_size: 64, n_steps: 4}}}}
evaluations:
  statistics: {{kind: statistics, sae: topk, classes: base, backbone: probe}}
  masking: {{kind: masking, statistics: statistics, backbone: probe, classes: base, ks: [1], n_random: 1}}
  reconstruction: {{kind: reconstruction, sae: topk, classes: base}}
"""


def experiment(root: Path, checkpoint: Path, shots: int = 3) -> str:
    return EXPERIMENT.format(root=str(root), checkpoint=str(checkpoint), shots=shots)


def test_everything_runs_on_a_data_set_of_coop(
    store: Store, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(monkeypatch, tmp_path, "oxford_pets")
    parsed = parse(experiment(tmp_path, tiny_checkpoint), "pets")
    done = run_all(store, parsed.nodes())
    draw = Catalog(store).scan("few_shot").filter(split="train").collect()
    # Classes 0 and 1 of three are base.
    assert draw["label"].to_list() == [0, 0, 0, 1, 1, 1] and draw["image_set"].n_unique() == 1
    images = done["index/pets"]
    rows = rows_of(images, "test", "base")
    labels = labels_of(images)[rows]
    backbone = load_backbone(parsed.backbones["clip"], {"weights": done["weights/clip"]}, "cpu")
    weights, _ = load_classifier(done["classifier/pets-clip-dataset"])
    activations = Activations(done["extract/pets-clip"])
    x = torch.from_numpy(
        to_float32(np.stack([activations.read(i, i + 1)[0] for i in rows]), activations.dtype)
    )
    with torch.inference_mode():
        scores = normalize(backbone.tail(x), dim=-1) @ weights.T
    among_base = scores[:, :2].argmax(1).numpy()
    found = done["reconstruction/reconstruction"].scan("reconstruction").filter(replaced="original").collect()
    assert (found["n"].item(), found["n_correct"].item()) == (6, (among_base == labels).sum())
    # Among all three classes the result would be another one.
    assert (scores.argmax(1).numpy() != among_base).any()
    table = done["masking/masking"].scan("masking").collect()
    assert set(table["class"].drop_nulls()) == {0, 1} and set(table["class_name"].drop_nulls()) == {
        "abyssinian",
        "american bulldog",
    }
    assert table.filter(pl.col("class").is_null())["n"].unique().to_list() == [6]


@pytest.mark.parametrize(
    ("shots", "change", "sentence"),
    [
        (
            5,
            lambda content: content,
            "few_shot: the class `abyssinian` has 4 images in the split `train`, fewer than",
        ),
        (3, lambda content: {**content, "test": content["test"][:-1]}, "has 8 images in the split `test`"),
        (
            3,
            lambda content: {**content, "test": [["gone.jpg", 0, "abyssinian"], *content["test"][1:]]},
            "is not there",
        ),
    ],
)
def test_a_plan_refuses_what_a_run_would(
    shots: int,
    change: object,
    sentence: str,
    store: Store,
    tmp_path: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny(monkeypatch, tmp_path, "oxford_pets")
    nodes = parse(experiment(tmp_path, tiny_checkpoint, shots), "pets").nodes()
    if shots > 4:
        run_all(store, [node for node in nodes if node.address == "index/pets"])
    rewrite(tmp_path, "oxford_pets", change)
    blocked = [item.why for item in plan(store, nodes).values() if item.state == "blocked"]
    assert any(sentence in why for why in blocked), blocked
