"""A store of the version before code was regrouped (revision 7e4452f): what it holds is found, read and kept."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import Work, work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.images.changes import changed_content
from patchsae.pipeline.results.find import find
from patchsae.pipeline.results.status import status_rows
from patchsae.pipeline.results.tables import Catalog
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store

STORE = Path(__file__).parents[2] / "data" / "stores" / "v0.1.tar.gz"
EXPERIMENT = """
name: old
datasets:
  shapes: {kind: shapes, seed: 3, splits: {train: 16, test: 8}, label: background}
backbones:
  clip: {kind: shapes_clip}
saes:
  relu: {kind: relu_l1, dataset: shapes, backbone: clip, n_latents: 64, batch_size: 256, n_steps: 20}
sweeps:
  sweep:
    base: {kind: topk, dataset: shapes, backbone: clip, n_latents: 64, batch_size: 256, n_steps: 10}
    grid: {k: [4, 8]}
evaluations:
  statistics: {kind: statistics, sae: relu, tau: 0.01}
  masking: {kind: masking, statistics: statistics, ks: [1, 5], n_random: 1}
  reconstruction: {kind: reconstruction, sae: relu}
  frontier: {kind: frontier}
"""
KEPT = ("weights", "extract", "classifier")
"""What is not computed again. The stage `index` has a new version, and finds the same images."""


@pytest.fixture
def old(tmp_path: Path) -> Store:
    with tarfile.open(STORE) as archive:
        archive.extractall(tmp_path, filter="data")
    return Store(tmp_path / "v0.1")


def work(store: Store) -> Work:
    return work_on(store, parse(EXPERIMENT, "old"))


def test_images_and_activations_stay_and_the_plan_says_why_saes_do_not(old: Store) -> None:
    planned = work(old).planned
    assert planned["index/shapes"].why.startswith(
        "code version: 1 -> 2, which turns images by their EXIF orientation"
    )
    run(work_on(old, parse(EXPERIMENT, "old"), only=["index"]), Runtime())
    indexes = old.committed("index")
    assert sorted(artifact.manifest.version for artifact in indexes) == [1, 2]
    assert changed_content(indexes[0], indexes[1]) is None
    for address, item in work(old).planned.items():
        is_new = address.startswith(("attributes/", "classifier/shapes."))
        assert (item.state == "cached") == (item.node.stage.name in ("index", *KEPT) and not is_new), address
    why = {address: item.why for address, item in work(old).planned.items()}
    assert why["train/relu"].startswith(
        "code version: 4 -> 5; eval_split: test -> absent; eval_tokens: 512 -> absent"
    )
    assert "input sae changed" in why["statistics/statistics"]


def test_a_run_computes_the_rest_and_keeps_what_there_was(old: Store) -> None:
    before = {artifact.key: artifact.manifest for artifact in old.committed()}
    run(work(old), Runtime())
    after = {artifact.key: artifact.manifest for artifact in old.committed()}
    assert {key: after[key] for key in before} == before
    assert {after[key].stage for key in after.keys() - before.keys()} == {
        *("index", "train", "statistics", "masking", "reconstruction", "frontier"),
        # Masking reads the other attributes off each mask, which the old version did not.
        *("attributes", "classifier"),
    }
    assert not work(old).to_do()


def test_fields_of_the_old_version_say_what_to_do_instead() -> None:
    text = EXPERIMENT.replace("n_steps: 20", "n_steps: 20, eval_split: test")
    with pytest.raises(UserError, match=r"saes.relu.*`eval_split` is no field any more.*`reconstruction`"):
        parse(text, "old")


def test_its_tables_are_read_beside_new_ones(old: Store) -> None:
    catalog = Catalog(old)
    assert catalog.scan("latents").select("evaluation").unique().collect().item() == "statistics"
    # Old tables held these names themselves.
    assert catalog.scan("masking").select("dataset").unique().collect().item() == "shapes"
    assert sorted(catalog.scan("frontier").select("sae").collect()["sae"].cast(str)) == [
        "relu",
        "sweep-k4",
        "sweep-k8",
    ]
    assert find(old, "train/relu").stage == "train"
    assert {"old: train/relu"} <= {name for row in status_rows(old, "old") for name in row["names"]}
    run(work(old), Runtime())
    latents = Catalog(old).scan("latents").collect()
    # The same evaluation twice, of the old SAE and the new one: keys tell them apart.
    assert latents["sae_key"].n_unique() == 2
    # Version 1 of the index had no such column, since it did nothing to pixels.
    treatments = Catalog(old).scan("images").select("treatment").collect()["treatment"]
    assert treatments.to_list() == [""] * 48
    assert set(Catalog(old).scan("frontier").collect()["sae"].cast(str)) == {"relu", "sweep-k4", "sweep-k8"}
