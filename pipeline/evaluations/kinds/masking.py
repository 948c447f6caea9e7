"""Evaluation `masking`: zero-shot accuracy with the top k latents kept alone, or taken out (spec 5).

Latents are ranked by an evaluation `statistics` on one split and masked on another split. The rankings `class` and
`class_selective` use the true class of each image, so their accuracies show what latents carry; they are not a
classifier's. `prediction` and `prediction_selective` use the class that the original activations are classified as.
Attributes that a dataset has beside its classes are read off the same features, so that the table says what a mask
does to the class and what to everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import field_validator

from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.backbones.effort import image_amounts, load_amounts
from patchsae.pipeline.classification.classifier import Prompts
from patchsae.pipeline.core.config import (
    INLINE,
    Config,
    EvaluationNames,
    HashedUnless,
    OptionalDatasetName,
    Unhashed,
)
from patchsae.pipeline.core.graph import Names
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, PartStage, Runtime, Stage
from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.evaluations.evaluated import EvaluatedImages, choose_encoder, n_latents_of
from patchsae.pipeline.evaluations.evaluation import AppliedConfig, EvaluationConfig, ImagesConfig, Wiring
from patchsae.pipeline.evaluations.foreseen import foresee
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.pipeline.evaluations.masking.bootstrap import bootstrapped
from patchsae.pipeline.evaluations.masking.conditions import conditions
from patchsae.pipeline.evaluations.masking.correct import ByImage, Correct
from patchsae.pipeline.evaluations.masking.effort import masking_effort, masking_scratch
from patchsae.pipeline.evaluations.masking.refuse import refuse_selections, refuse_several_classes
from patchsae.pipeline.evaluations.masking.settings import MaskingSettings
from patchsae.pipeline.evaluations.masking.table import (
    Labelling,
    masking_columns,
    masking_schema,
    masking_summary,
)
from patchsae.pipeline.evaluations.masking.worker import Worker, write_orders
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.tables import (
    Classes,
    class_names_of,
    expected_classes,
    expected_task_classes,
    labels_of,
)
from patchsae.storage.artifacts import Builder
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary
from patchsae.storage.scratch import ScratchArrays
from patchsae.storage.tables import expected_bytes

_BYTES_PER_ROW = 8


class MaskingConfig(EvaluationConfig, ImagesConfig, AppliedConfig, MaskingSettings):
    """Zero-shot accuracy on one split for every selection of latents, mode and k."""

    kind: Literal["masking"] = "masking"
    statistics: EvaluationNames
    """The evaluation of kind `statistics` whose counts rank the latents. It also names the SAE. Or a list of them, of
    the same SAE, such as those of a backbone and of an adapted one: each has rankings of its own in the table, and
    all share one pass over the images."""
    dataset: OptionalDatasetName = None
    """The images that are classified; if not given, the dataset of the statistics. For the selection `class`
    both must have the same classes."""
    split: str = "test"
    """The split that is classified."""
    tokens: Literal["all", "patches", "with_prompts"] = "all"
    """The tokens whose activations are replaced: all of the image, its patches, or learned prompt tokens too. The
    others stay as they are."""
    prompts: Prompts = Prompts()
    """The prompts of the zero-shot classification."""
    attributes: Annotated[Literal["all"] | tuple[str, ...], Unhashed("resolved in the stage's config")] = (
        "all"
    )
    """The attributes of the dataset that are read beside the class: all it has, or these. Each gets columns of its
    own in the table."""

    @field_validator("statistics")
    @classmethod
    def _some_statistics(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not names:
            raise ValueError("names no statistics; name one evaluation, or a list of them")
        return names

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def statistics_names(self) -> tuple[str, ...]:
        return (self.statistics,) if isinstance(self.statistics, str) else self.statistics

    def _selected_on(self, wiring: Wiring) -> list[StatisticsConfig]:
        """The evaluations that rank the latents. Raises UserError if they are of another kind, or of several SAEs."""
        found = []
        for name in self.statistics_names():
            statistics = wiring.evaluation(name)
            if not isinstance(statistics, StatisticsConfig):
                raise UserError(
                    f"masking: `statistics` names `{name}`, which is no evaluation of kind `statistics`; "
                    "name one that is."
                )
            found.append(statistics)
        saes = dict.fromkeys(one.sae for one in found)
        if len(saes) > 1:
            raise UserError(
                f"masking: `statistics` names evaluations of several SAEs ({', '.join(saes)}), whose latents are "
                "others; write one evaluation for each SAE."
            )
        return found

    def names(self, wiring: Wiring, evaluation: str) -> Names:
        statistics = self._selected_on(wiring)[0]
        dataset = self.dataset or statistics.dataset_name(wiring)
        return Names(dataset, self.backbone_of(wiring.sae(statistics.sae)), statistics.sae, evaluation)

    def stage_config(self, wiring: Wiring) -> MaskingStageConfig:
        statistics = self._selected_on(wiring)
        dataset = wiring.dataset(self.dataset or statistics[0].dataset_name(wiring))
        return MaskingStageConfig(
            masking=self,
            backbone=wiring.backbone(self.backbone_of(wiring.sae(statistics[0].sae))),
            attributes=self._attributes(dataset),
            class_attribute=dataset.class_attribute(),
            counted=tuple(one.classes for one in statistics),
        )

    def _attributes(self, dataset: DatasetConfig) -> tuple[str, ...]:
        """The names of the attributes that are read. Raises UserError for one that the dataset does not have."""
        known = tuple(dataset.attributes())
        if self.attributes == "all":
            return known
        for name in self.attributes:
            if name not in known:
                raise UserError(
                    f"masking: `attributes` names `{name}`, which the dataset does not have{nearest(name, known)}"
                )
        return tuple(name for name in known if name in self.attributes)

    def inputs(self, wiring: Wiring) -> dict[str, str]:
        statistics = self._selected_on(wiring)
        dataset = self.dataset or statistics[0].dataset_name(wiring)
        backbone = self.backbone_of(wiring.sae(statistics[0].sae))
        attributes = self._attributes(wiring.dataset(dataset))
        read = {f"classifier {a}": wiring.classifier(dataset, backbone, self.prompts, a) for a in attributes}
        selected = {}
        for i, (name, one) in enumerate(zip(self.statistics_names(), statistics, strict=True)):
            selected[numbered("statistics", i)] = wiring.evaluate(name)
            selected[numbered("selection_images", i)] = wiring.index(one.dataset_name(wiring))
        return {
            **selected,
            "activations": wiring.extract(dataset, backbone),
            "images": wiring.index(dataset),
            "sae": wiring.train(statistics[0].sae),
            "weights": wiring.weights(backbone),
            "classifier": wiring.classifier(dataset, backbone, self.prompts),
            **({"attributes": wiring.attributes(dataset)} if read else {}),
            **read,
            **wiring.backbone(backbone).inputs(wiring),
        }


def numbered(role: str, i: int) -> str:
    """The role of the i-th of several inputs; the first has the role's plain name."""
    return f"{role} {i}" if i else role


class MaskingStageConfig(Config):
    """The config of the stage: that of the evaluation, and the backbone its names lead to."""

    masking: Annotated[MaskingConfig, INLINE]
    backbone: Annotated[BackboneConfig, Unhashed("its weights are an input")]
    attributes: Annotated[tuple[str, ...], HashedUnless(())] = ()
    class_attribute: Annotated[str | None, HashedUnless(None)] = None
    counted: Annotated[tuple[Classes | None, ...], Unhashed("the statistics are inputs")] = (None,)
    """The classes that each of the statistics counts."""

    @property
    def n_bases(self) -> int:
        """How many different activations there are with all latents off."""
        return len(self.counted) if self.masking.ablation == "mean" else 1

    def rows(self, inputs: Inputs) -> np.ndarray:
        return self.masking.rows_of(inputs["images"], self.masking.split)


def _prepare(config: MaskingStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> int:
    masking, images, rows = config.masking, inputs["images"], config.rows(inputs)
    refuse_several_classes(images, rows)
    there = [class_names_of(inputs[numbered("selection_images", i)]) for i in range(len(config.counted))]
    task = masking.task_classes(images)
    refuse_selections(masking, class_names_of(images), there, task, masking.classes, config.counted)
    choose_encoder(inputs, out, runtime.device)
    n_rankings = len(masking.rankings(len(config.counted)))
    with runtime.reporter.bar("masking, rankings", n_rankings, "rankings") as bar:
        write_orders(masking, config.counted, inputs, out, bar)
    return len(EvaluatedImages(inputs, rows, runtime.device).parts)


def _worker(config: MaskingStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Worker:
    return Worker(
        config.masking, config.backbone, config.attributes, config.rows(inputs), len(config.counted),
        config.masking.tokens, config.masking.task_classes(inputs["images"]), inputs, out, runtime,
    )  # fmt: skip


def _merge(
    config: MaskingStageConfig, inputs: Inputs, out: Builder, parts: Sequence[ScratchArrays], runtime: Runtime
) -> Summary:
    masking, rows, n_latents = config.masking, config.rows(inputs), n_latents_of(inputs)
    class_names = class_names_of(inputs["images"])
    rankings, ks = masking.rankings(len(config.counted)), masking.finite_ks(n_latents)
    n_readings = 1 + len(config.attributes)
    correct = Correct.zeros(len(rankings), len(ks), n_readings, len(class_names), config.n_bases)
    for arrays in parts:
        correct.merge(arrays)
    labels = labels_of(inputs["images"])[rows]
    n_images = np.bincount(labels, minlength=len(class_names))
    found = conditions(masking, rankings, correct, n_latents)
    keys = [inputs[numbered("statistics", i)].key for i in range(len(config.counted))]
    labelling = Labelling(class_names, config.class_attribute, config.attributes)
    extra = None
    if masking.n_bootstrap:
        sizes = [len(part) for part in EvaluatedImages(inputs, rows, "cpu").parts]
        by_image = ByImage(zip(parts, sizes, strict=True), correct)
        right = conditions(masking, rankings, by_image, n_latents)
        extra = bootstrapped([one.n_correct for one in right], labels, masking.n_bootstrap)
    schema = masking_schema(config.attributes, len(keys), extra is not None)
    columns = masking_columns(found, masking.split, n_images, labelling, schema, keys, extra)
    out.write_table(schema, columns)
    return masking_summary(found, n_images, config.attributes)


def _predict(config: MaskingStageConfig, inputs: Upstreams) -> Prediction:
    masking, n_statistics = config.masking, len(config.counted)
    images = inputs["images"]
    if images.artifact is not None:
        refuse_several_classes(images.artifact, masking.rows_of(images.artifact, masking.split))
    there = [expected_classes(inputs[numbered("selection_images", i)]) for i in range(n_statistics)]
    task = expected_task_classes(images, masking.classes)
    refuse_selections(masking, expected_classes(images), there, task, masking.classes, config.counted)
    known = foresee(masking, masking.split, inputs)
    if known is None:
        return Prediction()
    n_conditions = masking.n_masks(known.n_latents, n_statistics)
    tails = image_amounts(config.backbone, inputs["weights"], known.n_images * n_conditions)
    if tails is None:
        return Prediction()
    schema = masking_schema(config.attributes, n_statistics, masking.n_bootstrap > 0)
    n_rows = n_conditions * (known.n_classes + 1)
    n_bytes = MANIFEST_BYTES + expected_bytes(schema, n_rows, _BYTES_PER_ROW)
    effort = [*load_amounts(inputs["weights"]), *masking_effort(masking, n_statistics, known), *tails]
    return Prediction({}, n_bytes, masking_scratch(masking, n_statistics, known), effort)


STAGE = PartStage(
    name="masking",
    version=3,
    section="evaluations",
    description="Accuracy with latents switched on or off.",
    changes={3: "reads every attribute off each masked activation, and has ten random seeds in its interval"},
    prepare=_prepare,
    worker=_worker,
    merge=_merge,
    predict=_predict,
)
