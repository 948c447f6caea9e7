"""Masking and reconstruction on the demo's model against the plain way: the whole model on pixels, a hook, one k at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.classification.classifier import load_classifier
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.images.indexed import indexed_images
from patchsae.pipeline.results.tables import Catalog
from patchsae.pipeline.saes.sae import load_sae
from patchsae.pipeline.shapes import world
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.nodes import run_all

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
  reconstruction: {kind: reconstruction, sae: relu}
  masking: {kind: masking, statistics: statistics, ks: [1, 4, 16, 64, all], selections: [class]}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("demo") / "store")
    run_all(store, parse(EXPERIMENT, "demo").nodes())
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
    backbone = load_backbone(experiment.backbones["clip"], artifact, "cpu")
    sae = load_sae(artifact["train"])
    weights, _ = load_classifier(artifact["classifier"])
    images = artifact["index"].scan("images").filter(split="test").collect()
    counts = artifact["statistics"].scan("class_latents").collect()
    table = artifact["masking"].scan("masking").filter(pl.col("class").is_null()).collect()
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


def test_replaced_activations_classify_as_a_hook_on_the_whole_model_does(store: Store) -> None:
    experiment = parse(EXPERIMENT, "demo")
    [index], [weights], [trained] = (store.committed(stage) for stage in ("index", "weights", "train"))
    backbone = load_backbone(experiment.backbones["clip"], {"weights": weights}, "cpu")
    sae = load_sae(trained)
    [measured] = store.committed("reconstruction")
    classes, scale = load_classifier(store.committed("classifier")[0])
    images = index.scan("images").filter(split="test").collect()
    pixels = indexed_images(experiment.datasets["shapes"], index, backbone.preprocess)
    block = backbone.model.visual.transformer.resblocks[backbone.hook_block]
    batch = torch.stack([pixels[image] for image in images["image"]])
    with torch.inference_mode():
        # As they are cached.
        x = backbone.head(batch).half().float()
        x_hat = sae.encode(x.flatten(0, 1)) @ sae.W_dec + sae.b_dec
    ways = {
        "original": x,
        "reconstruction": x_hat.view_as(x),
        "mean": x.mean(dim=(0, 1)).expand_as(x),
        "zero": torch.zeros_like(x),
    }
    table = measured.scan("reconstruction").collect()
    assert table["replaced"].to_list() == list(ways)
    labels = torch.tensor(images["label"].to_list())
    for way, replaced in ways.items():
        handle = block.register_forward_hook(lambda *_, replaced=replaced: replaced)
        with torch.inference_mode():
            features = normalize(backbone.model.encode_image(batch), dim=-1)
        handle.remove()
        logits = (scale * features @ classes.T).double()
        row = table.row(by_predicate=pl.col("replaced") == way, named=True)
        assert row["n_correct"] == int((logits.argmax(1) == labels).sum()), way
        expected = -logits.log_softmax(1)[range(48), labels].mean().item()
        assert row["cross_entropy"] == pytest.approx(expected, rel=1e-3), way

    summary = measured.manifest.summary
    X, X_hat = x.flatten(0, 1).double(), x_hat.double()
    error = (X - X_hat).square().sum(1)
    assert summary["fvu"] == pytest.approx((error.sum() / (X - X.mean(0)).square().sum()).item(), rel=1e-4)
    assert summary["mse"] == pytest.approx(error.mean().item() / x.shape[2], rel=1e-4)
    assert summary["mse_per_norm"] == pytest.approx(
        (error / X.norm(dim=1)).mean().item() / x.shape[2], rel=1e-4
    )
    assert summary["cosine"] == pytest.approx(torch.cosine_similarity(X, X_hat).mean().item(), rel=1e-4)
    fired = sae.encode(x.flatten(0, 1)) > 0
    assert summary["l0"] == pytest.approx(fired.sum(1).double().mean().item(), rel=1e-3)
    assert summary["dead_fraction"] == pytest.approx((~fired.any(0)).double().mean().item(), abs=0.01)
    accuracy, entropy = (
        dict(table.select("replaced", column).iter_rows()) for column in ("accuracy", "cross_entropy")
    )
    for way in ("mean", "zero"):
        kept = (accuracy["reconstruction"] - accuracy[way]) / (accuracy["original"] - accuracy[way])
        assert summary[f"zero_shot_kept_{way}"] == pytest.approx(kept)
        damage = (entropy["reconstruction"] - entropy["original"]) / (entropy[way] - entropy["original"])
        assert summary[f"contrastive_score_{way}"] == pytest.approx(damage)
        assert 0 < damage < 0.5
    histogram = measured.scan("firing_histogram").collect()
    assert histogram["n_latents"].sum() == 256


@torch.inference_mode()
def test_attributes_are_read_off_the_same_masked_activations(store: Store) -> None:
    experiment = parse(EXPERIMENT, "demo")
    artifacts = {stage: store.committed(stage)[0] for stage in ("index", "weights", "train", "statistics")}
    backbone = load_backbone(experiment.backbones["clip"], {"weights": artifacts["weights"]}, "cpu")
    sae = load_sae(artifacts["train"])
    images = artifacts["index"].scan("images").filter(split="test").collect()
    plans = [world.layout(2, "test", int(source.split("/")[1])) for source in images["source"]]
    x = backbone.head(torch.stack([backbone.preprocess(Image.fromarray(world.draw(p).image)) for p in plans]))
    x = x.half().float()
    f = sae.encode(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    n_classes = len(world.SHAPES)
    counts = np.zeros((n_classes, 256))
    for row in artifacts["statistics"].scan("class_latents").collect().iter_rows(named=True):
        counts[row["class"], row["latent"]] = row["n_tokens"]
    order = np.argsort(-counts, axis=1, kind="stable")
    mask = torch.ones(len(plans), 256)
    for i, label in enumerate(images["label"]):
        mask[i, order[label, :16].copy()] = 0
    features = normalize(backbone.tail((f * mask[:, None]) @ sae.W_dec + sae.b_dec), dim=-1)
    table = store.committed("masking")[0].scan("masking").collect()
    assert table["attribute"].unique().to_list() == ["shape"]
    rows = table.filter(selection="class", mode="off", k=16)
    for name in ("colour", "texture", "background"):
        values = world.PRETRAINING_VALUES[name]
        texts = backbone.class_embeddings(values, world.TEMPLATES[name], True)
        predicted = (features @ texts.T).argmax(1).tolist()
        right = np.array([values[p] == plan.value(name) for p, plan in zip(predicted, plans, strict=True)])
        for row in rows.iter_rows(named=True):
            here = np.array([row["class"] in (None, label) for label in images["label"]])
            assert row[f"accuracy_{name}"] == pytest.approx(right[here].mean(), abs=1e-9), (
                name,
                row["class"],
            )
            assert row[f"ci_low_{name}"] <= row[f"accuracy_{name}"] <= row[f"ci_high_{name}"]
    summary = store.committed("masking")[0].manifest.summary
    whole = rows.filter(pl.col("class").is_null())
    nearest = table.filter(pl.col("class").is_null(), selection="class", mode="off", k=4)
    assert summary["off_class_k4_colour"] == pytest.approx(nearest["accuracy_colour"].item())
    # The comparison would mean little if all attributes fared alike.
    assert len({whole[f"accuracy_{name}"].item() for name in ("colour", "texture", "background")}) > 1
    # A query for all images together has one row per selection, seed, mode and k, as before.
    found = table.filter(pl.col("class").is_null())
    assert found.select("selection", "seed", "mode", "k").is_unique().all()


def test_attributes_are_chosen_by_name(store: Store) -> None:
    text = EXPERIMENT.replace("selections: [class]", "selections: [class], attributes: [colour]")
    nodes = {node.address: node for node in parse(text, "demo").nodes()}
    assert {role for role in nodes["masking/masking"].inputs if role.startswith("classifier ")} == {
        "classifier colour"
    }
    none = EXPERIMENT.replace("selections: [class]", "selections: [class], attributes: []")
    assert not any(node.stage.name == "attributes" for node in parse(none, "demo").nodes())
    with pytest.raises(
        UserError, match="names `color`, which the dataset does not have; did you mean `colour`"
    ):
        parse(text.replace("[colour]", "[color]"), "demo").nodes()


def test_images_of_several_classes_are_refused(store: Store) -> None:
    text = EXPERIMENT.replace("test: 48}}", "test: 48, two_objects: 12}}").replace(
        "selections: [class]", "selections: [class], split: two_objects"
    )
    sentence = "12 of the 12 images are of several classes"
    with pytest.raises(UserError, match=sentence):
        run_all(store, parse(text, "demo").nodes())
    planned = work_on(store, parse(text, "demo")).planned["masking/masking"]
    assert planned.state == "blocked" and sentence in planned.why


def test_class_latents_carry_their_class(store: Store) -> None:
    summary = store.committed("masking")[0].manifest.summary
    assert summary["zero_shot_accuracy"] > 0.9  # type: ignore[operator]
    table = (
        Catalog(store)
        .scan("masking")
        .filter(pl.col("class").is_null(), selection="class", mode="off")
        .collect()
    )
    accuracy = dict(table.select("k", "accuracy").iter_rows())
    assert accuracy[64] < 0.5 * accuracy[1]
