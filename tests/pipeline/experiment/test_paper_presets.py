"""The presets of the paper: what they share, what they differ in, and that they are the published settings."""

from __future__ import annotations

import fnmatch
from typing import Any

import pytest

from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.evaluations.kinds.adaptation import AdaptationConfig
from patchsae.pipeline.evaluations.kinds.masking import MaskingConfig
from patchsae.pipeline.evaluations.kinds.remapping import RemappingConfig
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.pipeline.experiment.experiment import Experiment, load
from patchsae.pipeline.images.datasets.coop import CoopConfig
from patchsae.pipeline.results.paper.ours import rows_of_table_2
from patchsae.pipeline.results.paper.published import DATASETS, figures
from patchsae.storage.keys import canonical_json


@pytest.fixture(scope="module")
def compat() -> Experiment:
    return load("paper-compat")


@pytest.fixture(scope="module")
def corrected() -> Experiment:
    return load("corrected")


def identities(experiment: Experiment, stage: str) -> dict[str, str]:
    """Address -> all that a key is made of, for the nodes of a stage, without looking at images or weights."""
    found: dict[str, str] = {}
    nodes: dict[str, Node] = {}
    for node in experiment.nodes():
        nodes[node.address] = node
        inputs = {role: found[address] for role, address in node.inputs.items()}
        place: Any = node.config.model_dump(mode="json") if node.stage.name in ("index", "weights") else None
        found[node.address] = canonical_json(
            [node.stage.name, node.stage.version, node.config.key_config(), inputs, place]
        )
    return {address: found[address] for address, node in nodes.items() if node.stage.name == stage}


def test_both_presets_share_all_activations_and_what_is_trained(
    compat: Experiment, corrected: Experiment
) -> None:
    extracts = identities(compat, "extract")
    # Of 11 datasets, with CLIP and with the adapter of each.
    assert len(extracts) == 2 * len(DATASETS)
    assert extracts == identities(corrected, "extract")
    for stage in ("index", "adapt"):
        assert identities(compat, stage) == identities(corrected, stage)
    assert identities(compat, "train")["train/relu"] == identities(corrected, "train")["train/relu"]
    mine, theirs = identities(compat, "statistics"), identities(corrected, "statistics")
    assert mine.keys() == theirs.keys()
    assert not set(mine.values()) & set(theirs.values())


@pytest.mark.parametrize("preset", ["paper-compat", "corrected"])
def test_every_dataset_has_every_analysis(preset: str) -> None:
    experiment = load(preset)
    named = {
        config.name: name for name, config in experiment.datasets.items() if isinstance(config, CoopConfig)
    }
    assert sorted(named) == sorted(DATASETS)
    for dataset in named.values():
        mine = {
            name: config for name, config in experiment.evaluations.items() if name.startswith(f"{dataset}-")
        }
        clip, maple = f"{dataset}-clip", f"{dataset}-maple"
        remapping = mine[f"{dataset}-remapping"]
        assert isinstance(remapping, RemappingConfig)
        assert (remapping.before, remapping.after) == (clip, maple)
        backbones: dict[str, str | None] = {clip: None, maple: f"maple-{dataset}"}
        for name, backbone in backbones.items():
            counts = mine[name]
            assert isinstance(counts, StatisticsConfig)
            assert (counts.dataset, counts.backbone, counts.classes) == (dataset, backbone, None)
            for half in ("base", "novel"):
                masking = mine[f"{name}-{half}"]
                assert isinstance(masking, MaskingConfig)
                assert masking.statistics == (clip, maple)
                assert (masking.backbone, masking.classes) == (backbone, half)


def test_paper_compat_has_the_references_oddities(compat: Experiment) -> None:
    for name, config in compat.evaluations.items():
        if isinstance(config, StatisticsConfig):
            assert (config.tau, config.split, config.tokens, config.convention) == (
                0.2,
                "train",
                "with_prompts",
                "paper",
            )
            assert config.k_images >= 16
        else:
            prompts = config.prompts  # type: ignore[attr-defined]
            assert (prompts.templates, prompts.renormalise) == ("imagenet", False)
        if isinstance(config, MaskingConfig):
            assert config.split == ("test" if name.startswith("imagenet") else "train")
            assert (config.tokens, config.error, config.ablation) == ("with_prompts", "dropped", "zero")


def test_corrected_has_none_of_them(corrected: Experiment) -> None:
    for config in corrected.evaluations.values():
        if isinstance(config, StatisticsConfig):
            assert (config.split, config.tokens, config.convention) == ("train", "all", "corrected")
            continue
        prompts = config.prompts  # type: ignore[attr-defined]
        assert (prompts.templates, prompts.renormalise) == ("dataset", True)
        assert config.split == "test"  # type: ignore[attr-defined]
        if isinstance(config, MaskingConfig):
            assert config.tokens == "all"


def test_the_saes_of_table_2_are_the_published_ones() -> None:
    experiment = load("paper-table2")
    published = set(figures().filter(table="table-2")["method"])
    found = {
        name: rows_of_table_2(
            sae.model_dump(mode="json"), experiment.backbones[sae.backbone].model_dump(mode="json")
        )
        for name, sae in experiment.saes.items()
    }
    # The first row is a predecessor's SAE with the settings of the second.
    assert {row for rows in found.values() for row in rows} == published
    assert all(rows[-1] == name for name, rows in found.items())


@pytest.mark.parametrize("preset", ["paper-compat", "corrected", "paper-table2"])
def test_they_have_the_sae_of_the_imagenet_preset(preset: str) -> None:
    experiment = load(preset)
    sae = experiment.saes["all-11" if preset == "paper-table2" else "relu"]
    alike = load("imagenet-vit-b16").saes["relu"]
    assert sae.key_config() == alike.key_config()


def test_table_1_has_three_seeds_of_every_dataset() -> None:
    experiment = load("paper-table1")
    # docs/cluster.md runs each of them alone.
    assert sorted(experiment.evaluations) == sorted(DATASETS)
    for dataset, config in experiment.evaluations.items():
        assert isinstance(config, AdaptationConfig)
        [pattern] = config.adapters
        adapters = [experiment.adapters[name] for name in fnmatch.filter(experiment.adapters, pattern)]
        assert [(one.dataset, one.seed, one.classes) for one in adapters] == [
            (dataset, seed, "base") for seed in (1, 2, 3)
        ]
