"""Masking on the demo's model against the plain way: the whole model on pixels, a hook, one k at a time."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from torch.nn.functional import normalize

from pipeline.classifier import load_classifier
from pipeline.dag import build
from pipeline.experiment import parse
from pipeline.extract import indexed_images
from pipeline.plan import plan, run_node
from pipeline.saes.base import load_sae
from pipeline.stage import Runtime
from pipeline.weights import load_backbone
from storage import tables
from storage.artifacts import Store

EXPERIMENT = """
name: small-demo
datasets:
  shapes: {kind: shapes, seed: 2, splits: {train: 160, test: 48}}
backbones:
  clip: {kind: shapes_clip}
saes:
  relu: {kind: relu_l1, dataset: shapes, backbone: clip, n_latents: 256, l1_coefficient: 2.0e-3, lr: 4.0e-3,
         lr_warmup_steps: 10, batch_size: 1024, n_steps: 120}
evaluations:
  statistics: {kind: statistics, sae: relu}
  masking: {kind: masking, statistics: statistics, ks: [1, 4, 16, 64, all], selections: [class]}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("demo") / "store")
    nodes = build(parse(EXPERIMENT, "demo"))
    for node in nodes:
        planned = plan(store, nodes)
        run_node(store, planned[node.address], planned, Runtime())
    return store


@pytest.mark.parametrize("mode", ["on", "off"])
def test_every_k_classifies_as_a_hook_on_the_whole_model_does(
    store: Store, mode: str, tmp_path: Path
) -> None:
    experiment = parse(EXPERIMENT, "demo")
    artifact = {
        stage: store.committed(stage)[0]
        for stage in ("index", "weights", "classifier", "train", "statistics", "masking")
    }
    backbone = load_backbone(experiment.backbones["clip"], artifact["weights"], "cpu")
    sae = load_sae(artifact["train"])
    weights, _ = load_classifier(artifact["classifier"])
    images = tables.of(artifact["index"], "images").filter(split="test").collect()
    counts = tables.of(artifact["statistics"], "class_latents").collect()
    table = tables.of(artifact["masking"], "masking").filter(pl.col("class").is_null()).collect()
    pixels = indexed_images(experiment.datasets["shapes"], artifact["index"], backbone.preprocess)
    block = backbone.model.visual.transformer.resblocks[backbone.hook_block]

    for k in (1, 4, 16, 64, 256):
        n_correct = 0
        for image, label in images.select("image", "label").iter_rows():
            ranked = counts.filter(pl.col("class") == label).sort(
                ["n_tokens", "latent"], descending=[True, False]
            )
            top = ranked["latent"].to_list()
            top += [latent for latent in range(256) if latent not in set(top)]
            mask = torch.zeros(256)
            mask[top[:k]] = 1.0
            mask = mask if mode == "on" else 1 - mask

            def replace(
                module: object, inputs: object, output: torch.Tensor, mask: torch.Tensor = mask
            ) -> torch.Tensor:
                f = torch.relu((output - sae.b_dec) @ sae.W_enc + sae.b_enc)
                return (f * mask) @ sae.W_dec + sae.b_dec

            handle = block.register_forward_hook(replace)
            with torch.inference_mode():
                features = normalize(backbone.model.encode_image(pixels[image][None]), dim=-1)
            handle.remove()
            n_correct += int((features @ weights.T).argmax() == label)
        row = table.filter(selection="class", mode=mode, k=k)
        assert row["n"].to_list() == [48]
        assert row["n_correct"].to_list() == [n_correct], k


def test_class_latents_carry_their_class(store: Store) -> None:
    summary = store.committed("masking")[0].manifest.summary
    assert summary["zero_shot_accuracy"] > 0.9  # type: ignore[operator]
    table = (
        tables.scan("masking", store)
        .filter(pl.col("class").is_null(), selection="class", mode="off")
        .collect()
    )
    accuracy = dict(table.select("k", "accuracy").iter_rows())
    assert accuracy[64] < 0.5 * accuracy[1]
