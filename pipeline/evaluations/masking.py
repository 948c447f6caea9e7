"""Evaluation `masking`: zero-shot accuracy with only some latents on, or some off (spec 5).

Latents are ranked on one split (the `statistics` evaluation) and masked on another. Class-level masks use the true
class of each image: they show what latents carry, they are no classifier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from pipeline.backbones.base import BackboneConfig
from pipeline.classifier import Prompts, load_classifier
from pipeline.config import Config, EvaluationName, OptionalDatasetName
from pipeline.evaluations.base import EvaluationConfig
from pipeline.evaluations.statistics import StatisticsConfig
from pipeline.index import split_range
from pipeline.latents import PartImages, encode, images_per_block, labels_of, part_ranges, sae_on
from pipeline.mask_sweep import Correct, Zeroshot, count_correct
from pipeline.mask_table import MASKING, masking_columns, masking_summary
from pipeline.rankings import class_ranking, dataset_ranking, random_ranking
from pipeline.saes.base import load_sae
from pipeline.stage import Inputs, Runtime, Stage
from pipeline.weights import backbone_on
from storage import parts, tables
from storage.activations import Activations
from storage.artifacts import Artifact, Builder, Summary
from storage.errors import UserError

if TYPE_CHECKING:
    from pipeline.dag import Dag

Selection = Literal["class", "dataset", "random"]
_RANKINGS = "rankings"
_CORRECT = "correct"


class MaskingConfig(EvaluationConfig):
    """Accuracy on one split for every selection, mode and k."""

    kind: Literal["masking"] = "masking"
    statistics: EvaluationName
    """The evaluation whose counts rank the latents; it names the SAE."""
    dataset: OptionalDatasetName = None
    """The images to classify; the statistics' own dataset if not given. Its classes must be the same."""
    split: str = "test"
    ks: tuple[Annotated[int, Field(ge=1)] | Literal["all"], ...] = (
        1,
        2,
        5,
        10,
        50,
        100,
        500,
        1000,
        2000,
        "all",
    )
    """How many latents are on, or off; the number of latents or more is the same as `all`."""
    selections: tuple[Selection, ...] = ("class", "dataset", "random")
    modes: tuple[Literal["on", "off"], ...] = ("on", "off")
    n_random: Annotated[int, Field(ge=1)] = 3
    """Random rankings, from the seeds 0, 1, ..."""
    random_pool: Literal["alive", "all"] = "alive"
    """What random latents are drawn from: those that fire on the statistics' split, or all."""
    tokens: Literal["all", "patches"] = "all"
    """The tokens whose activations are replaced."""
    prompts: Prompts = Prompts()

    @field_validator("ks")
    @classmethod
    def _ascending(cls, ks: tuple[int | str, ...]) -> tuple[int | str, ...]:
        numbers = sorted({k for k in ks if isinstance(k, int)})
        return (*numbers, "all") if "all" in ks else tuple(numbers)

    @field_validator("selections", "modes")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(names))

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def _selected_on(self, dag: Dag) -> StatisticsConfig:
        statistics = dag.evaluation(self.statistics)
        if not isinstance(statistics, StatisticsConfig):
            raise UserError(
                f"masking: `statistics` names `{self.statistics}`, which is no evaluation of kind `statistics`; "
                "name one that is."
            )
        return statistics

    def stage_config(self, dag: Dag) -> MaskingStageConfig:
        statistics = self._selected_on(dag)
        backbone = dag.experiment.backbones[dag.sae(statistics.sae).backbone]
        return MaskingStageConfig(
            masking=self, dataset_name=self.dataset or statistics.dataset_name(dag), backbone=backbone
        )

    def inputs(self, dag: Dag) -> dict[str, str]:
        statistics = self._selected_on(dag)
        selected_on = statistics.dataset_name(dag)
        dataset = self.dataset or selected_on
        backbone = dag.sae(statistics.sae).backbone
        return {
            "statistics": dag.evaluate(self.statistics),
            "activations": dag.extract(dataset, backbone),
            "images": dag.index(dataset),
            "selection_images": dag.index(selected_on),
            "sae": dag.train(statistics.sae),
            "weights": dag.weights(backbone),
            "classifier": dag.classifier(dataset, backbone, self.prompts),
        }


class MaskingStageConfig(Config):
    """The config with what its names stand for."""

    masking: MaskingConfig
    dataset_name: str
    """Hashed, unlike other names: it is a column of the table."""
    backbone: BackboneConfig
    """Not hashed: the weights and the activations are inputs."""

    def key_config(self) -> dict[str, Any]:
        return {**self.masking.key_config(), "dataset_name": self.dataset_name}

    def finite_ks(self, n_latents: int) -> np.ndarray:
        """The k that are really swept: fewer than all latents."""
        return np.array([k for k in self.masking.ks if isinstance(k, int) and k < n_latents], np.int64)

    def includes_all(self, n_latents: int) -> bool:
        return len(self.finite_ks(n_latents)) < len(self.masking.ks)

    def rankings(self) -> list[tuple[str, int | None]]:
        """(selection, seed) of every ranking, in the order of the table."""
        seeds = range(self.masking.n_random)
        return [
            (selection, seed)
            for selection in self.masking.selections
            for seed in (seeds if selection == "random" else [None])
        ]


def _write_rankings(config: MaskingStageConfig, inputs: Inputs, out: Builder, n_latents: int) -> None:
    """One array [C or 1, K] per ranking, for the parts to read."""
    masking, statistics = config.masking, inputs["statistics"]
    n_ranked = int(config.finite_ks(n_latents).max(initial=0))
    latents = tables.of(statistics, "latents").select("n_tokens_above", "dead").collect()
    arrays = {}
    for i, (selection, seed) in enumerate(config.rankings()):
        if selection == "class":
            n_classes = len(_class_names(inputs["images"]))
            arrays[str(i)] = class_ranking(statistics, n_latents, n_classes, n_ranked)
        elif selection == "dataset":
            arrays[str(i)] = dataset_ranking(latents, n_ranked)[None]
        else:
            assert seed is not None
            arrays[str(i)] = random_ranking(latents, n_ranked, seed, masking.random_pool == "alive")[None]
    parts.write(out, _RANKINGS, 0, arrays)


def _class_names(images: Artifact) -> list[str]:
    return tables.of(images, "classes").select("class_name").collect()["class_name"].to_list()


def _check_classes(config: MaskingStageConfig, inputs: Inputs) -> None:
    if "class" in config.masking.selections:
        here, there = (_class_names(inputs[role]) for role in ("images", "selection_images"))
        if here != there:
            raise UserError(
                f"masking: the dataset `{config.dataset_name}` has other classes ({len(here)}) than the one its "
                f"latents are selected on ({len(there)}); make statistics of this dataset, or leave `class` out of "
                "`selections`."
            )


def _run_part(config: MaskingStageConfig, inputs: Inputs, out: Builder, runtime: Runtime, part: int) -> None:
    """Classifies one shard's images of the split in every way."""
    device = runtime.device
    activations = Activations(inputs["activations"])
    rows = part_ranges(activations, split_range(inputs["images"], config.masking.split))[part]
    labels = labels_of(inputs["images"])[rows.start : rows.stop]
    sae = sae_on(inputs["sae"], device)
    classifier, _ = load_classifier(inputs["classifier"], device)
    zeroshot = Zeroshot(backbone_on(config.backbone, inputs["weights"], device), classifier)
    ks = config.finite_ks(sae.n_latents)
    written = parts.PartArrays(out, _RANKINGS, 0)
    rankings = [torch.tensor(written[str(i)], device=device).long() for i in range(len(config.rankings()))]
    images = PartImages(activations, rows, device)
    first = activations.n_prefix_tokens if config.masking.tokens == "patches" else 0
    correct = Correct.zeros(len(rankings), len(ks), len(classifier))
    step = images_per_block(sae.n_latents, activations.tokens_per_image - first)
    for start in range(0, len(rows), step):
        block = range(rows.start + start, min(rows.start + start + step, rows.stop))
        x = images.take(block)
        label = labels[start : start + len(block)]
        latents = encode(sae, x[:, first:].flatten(0, 1))
        of_label = torch.from_numpy(label).to(device)
        mine = [ranking if len(ranking) == 1 else ranking[of_label] for ranking in rankings]
        count_correct(correct, x, latents, label, mine, ks, sae, zeroshot, config.masking.modes)
    out.ledger.record(part, [parts.write(out, _CORRECT, part, correct.arrays())])


def _run(config: MaskingStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    _check_classes(config, inputs)
    rows = split_range(inputs["images"], config.masking.split)
    n_latents = load_sae(inputs["sae"]).n_latents
    _write_rankings(config, inputs, out, n_latents)
    n_parts = len(part_ranges(Activations(inputs["activations"]), rows))
    runtime.map_parts(STAGE, config, inputs, out, runtime, out.ledger.missing(n_parts))
    sae_on.cache_clear()
    backbone_on.cache_clear()

    class_names = _class_names(inputs["images"])
    correct = Correct.zeros(len(config.rankings()), len(config.finite_ks(n_latents)), len(class_names))
    for part in range(n_parts):
        arrays = parts.PartArrays(out, _CORRECT, part)
        correct.add(Correct(**{name: arrays[name] for name in vars(correct)}))
    labels = labels_of(inputs["images"])[rows.start : rows.stop]
    n_images = np.bincount(labels, minlength=len(class_names))
    tables.write(out, MASKING, masking_columns(config, correct, n_images, class_names, n_latents))
    return masking_summary(config, correct, n_images, n_latents)


STAGE = Stage("masking", 1, _run, _run_part)
