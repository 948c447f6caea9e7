"""Evaluations of images with several classes, against plain code on dense latents."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn.functional import normalize

from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.classification.classifier import load_classifier
from patchsae.pipeline.classification.zero_shot import all_on_top
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.images.tables import label_sets_of
from patchsae.pipeline.saes.sae import load_sae
from patchsae.storage.activations import Activations, to_float32
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store
from tests.support.nodes import run_all

N = 60
EXPERIMENT = f"""
name: two
datasets:
  shapes: {{kind: shapes, seed: 2, splits: {{train: 160}}}}
  two: {{kind: shapes, seed: 2, splits: {{two_objects: {N}}}, label: colour}}
backbones:
  clip: {{kind: shapes_clip}}
saes:
  weak: {{kind: topk, dataset: shapes, backbone: clip, n_latents: 256, k: 4, batch_size: 1024, n_steps: 60}}
  good: {{kind: topk, dataset: shapes, backbone: clip, n_latents: 256, k: 32, batch_size: 1024, n_steps: 60}}
evaluations:
  frontier: {{kind: frontier, dataset: two, split: two_objects}}
  statistics: {{kind: statistics, sae: good, dataset: two, split: two_objects, k_images: 5}}
  halves: {{kind: reconstruction, sae: weak, dataset: two, split: two_objects, classes: novel}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    store = Store(tmp_path_factory.mktemp("two") / "store")
    return run_all(store, parse(EXPERIMENT, "two").nodes())


def dense(made: dict[str, Artifact], sae: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations, latents and reconstructions of all images: [N, T, d], [N, T, S], [N, T, d]."""
    activations = Activations(made["extract/two-clip"])
    x = torch.from_numpy(to_float32(activations.read(0, N), activations.dtype))
    loaded = load_sae(made[f"train/{sae}"])
    f = loaded.encode(x.flatten(0, 1))
    x_hat = f @ loaded.W_dec + loaded.b_dec
    return x, f.unflatten(0, x.shape[:2]), x_hat.view_as(x)


def shown(made: dict[str, Artifact]) -> np.ndarray:
    return label_sets_of(made["index/two"]).mask(np.arange(N), np.arange(8))


def test_the_classes_on_top_are_those_with_the_largest_scores() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        scores = generator.normal(size=(1, 7))
        n = int(generator.integers(1, 7))
        label_sets = np.zeros((1, 7), bool)
        label_sets[0, generator.permutation(7)[:n]] = True
        right = set(np.argsort(-scores[0])[:n]) == set(np.flatnonzero(label_sets[0]))
        assert bool(all_on_top(torch.tensor(scores), torch.tensor(label_sets))) == right
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert all_on_top(torch.zeros(2, 3), everything).all()


@torch.inference_mode()
def test_a_reconstruction_is_right_if_both_colours_are_on_top(made: dict[str, Artifact]) -> None:
    backbone = load_backbone(
        parse(EXPERIMENT, "two").backbones["clip"], {"weights": made["weights/clip"]}, "cpu"
    )
    weights, scale = load_classifier(made["classifier/two-clip-dataset"])
    x, _, x_hat = dense(made, "weak")
    ways = {
        "original": x,
        "reconstruction": x_hat,
        "mean": x.mean((0, 1)).expand_as(x).contiguous(),
        "zero": torch.zeros_like(x),
    }
    sets = shown(made)
    assert (sets.sum(1) == 2).all()
    artifact = made["reconstruction/weak-two-two_objects"]
    table = artifact.scan("reconstruction").collect()
    log_p = {}
    for way, replaced in ways.items():
        logits = scale * normalize(backbone.tail(replaced), dim=-1) @ weights.T
        log_p[way] = logits.double().log_softmax(1).numpy()
        order = np.argsort(-logits.numpy(), axis=1)
        row = table.row(by_predicate=pl.col("replaced") == way, named=True)
        both = [sets[i, order[i, :2]].all() for i in range(N)]
        one = [sets[i, order[i, 0]] for i in range(N)]
        assert (row["n"], row["n_sets_correct"], row["n_correct"]) == (N, sum(both), sum(one)), way
        assert row["set_accuracy"] == pytest.approx(np.mean(both))
        assert row["set_ci_low"] <= row["set_accuracy"] <= row["set_ci_high"]
        entropy = -np.mean([log_p[way][i, sets[i]].mean() for i in range(N)])
        assert row["cross_entropy"] == pytest.approx(entropy, rel=1e-3)
        p = np.exp(log_p["original"])
        kl = (p * (log_p["original"] - log_p[way])).sum(1).mean()
        assert row["kl_to_original"] == pytest.approx(kl, rel=1e-3, abs=1e-9)
    # The comparison would mean little if it were the same in every way.
    assert table["n_sets_correct"].n_unique() > 2 and table["kl_to_original"][1] > 0.05
    accuracy = dict(table.select("replaced", "set_accuracy").iter_rows())
    kept = (accuracy["reconstruction"] - accuracy["mean"]) / (accuracy["original"] - accuracy["mean"])
    assert artifact.manifest.summary["set_kept_mean"] == pytest.approx(kept)


@torch.inference_mode()
def test_of_an_image_in_two_halves_the_classes_of_one_count(made: dict[str, Artifact]) -> None:
    backbone = load_backbone(
        parse(EXPERIMENT, "two").backbones["clip"], {"weights": made["weights/clip"]}, "cpu"
    )
    weights, _ = load_classifier(made["classifier/two-clip-dataset"])
    x, _, _ = dense(made, "weak")
    sets = shown(made)[:, 4:]
    rows = np.flatnonzero(sets.any(1))
    # Both colours of some images are novel, and one of others.
    assert set(sets[rows].sum(1)) == {1, 2} and len(rows) < N
    scores = normalize(backbone.tail(x[rows]), dim=-1) @ weights[4:].T
    order = np.argsort(-scores.numpy(), axis=1)
    all_right = [sets[row, best[: sets[row].sum()]].all() for row, best in zip(rows, order, strict=True)]
    table = made["reconstruction/halves"].scan("reconstruction").filter(replaced="original").collect()
    assert (table["n"].item(), table["n_sets_correct"].item()) == (len(rows), sum(all_right))
    assert table["n_correct"].item() == sum(sets[row, best[0]] for row, best in zip(rows, order, strict=True))


def test_two_objects_tell_saes_apart(made: dict[str, Artifact]) -> None:
    table = made["frontier/frontier"].scan("frontier").collect().sort("l0")
    weak, good = table.select("set_kept_mean", "kl_reconstruction").rows(named=True)
    assert weak["set_kept_mean"] < good["set_kept_mean"] - 0.1
    assert weak["kl_reconstruction"] > 1.5 * good["kl_reconstruction"]


@torch.inference_mode()
def test_statistics_count_an_image_once_and_for_each_of_its_classes(made: dict[str, Artifact]) -> None:
    _, latents, _ = dense(made, "good")
    f, sets = latents.numpy(), shown(made)
    artifact = made["statistics/statistics"]
    by_class = artifact.scan("class_latents").collect()
    above, fires = (f > 0.2).sum(1), (f > 0).any(1)
    for row in by_class.iter_rows(named=True):
        mine = sets[:, row["class"]]
        assert row["n_images"] == fires[mine, row["latent"]].sum()
        assert abs(row["n_tokens"] - above[mine, row["latent"]].sum()) <= 1
    assert len(by_class) == sum((fires[sets[:, c]].any(0)).sum() for c in range(8))
    table = artifact.scan("latents").collect()
    assert table["n_images"].to_list() == fires.sum(0).tolist()
    assert table["n_tokens"].to_list() == (f > 0).sum((0, 1)).tolist()
    assert artifact.manifest.summary["n_images"] == N
    top = artifact.scan("latent_images").collect()
    assert top.select("latent", "image").is_unique().all()
