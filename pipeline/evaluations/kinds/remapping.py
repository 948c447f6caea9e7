"""Evaluation `remapping`: what adaptation did to the concepts of every class (spec 6).

It compares two evaluations `statistics` of one SAE on the same images, before and after adaptation. The formulas are in
`pipeline.evaluations.remapping`, and docs/remapping.md says which of them the paper does not state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.backbones.effort import image_amounts, load_amounts
from patchsae.pipeline.classification.classifier import Prompts
from patchsae.pipeline.core.config import INLINE, Config, EvaluationName, Unhashed
from patchsae.pipeline.core.graph import Names
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, PartStage, Runtime, Stage
from patchsae.pipeline.evaluations.evaluated import EvaluatedImages, choose_encoder, n_latents_of
from patchsae.pipeline.evaluations.evaluation import EvaluationConfig, ImagesConfig, Wiring
from patchsae.pipeline.evaluations.foreseen import foresee
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.pipeline.evaluations.masking.refuse import refuse_several_classes
from patchsae.pipeline.evaluations.remapping.counting import of_classes
from patchsae.pipeline.evaluations.remapping.merge import (
    ClassResults,
    columns,
    prediction_rows,
    remapping_rows,
    sensitivity_rows,
)
from patchsae.pipeline.evaluations.remapping.settings import RemappingSettings, tasks_of
from patchsae.pipeline.evaluations.remapping.sides import SIDES, counts_of_sides, side_of
from patchsae.pipeline.evaluations.remapping.tables import (
    REMAPPING,
    REMAPPING_LATENTS,
    REMAPPING_PREDICTIONS,
    REMAPPING_SENSITIVITY,
    TABLES,
)
from patchsae.pipeline.evaluations.remapping.worker import SHARED, Chosen, Worker, write_shared
from patchsae.pipeline.images.tables import class_names_of, label_sets_of, labels_of, rows_of
from patchsae.storage.artifacts import Builder
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary
from patchsae.storage.scratch import ScratchArrays
from patchsae.storage.tables import expected_bytes

_SAME = ("split", "classes", "limit", "tokens", "tau")


class RemappingConfig(EvaluationConfig, RemappingSettings):
    """Latents and predictions of every class before and after adaptation."""

    kind: Literal["remapping"] = "remapping"
    before: EvaluationName
    """The evaluation of kind `statistics` on the backbone before adaptation."""
    after: EvaluationName
    """The evaluation of kind `statistics` on the adapted backbone: of the same SAE, images, tokens and tau."""
    split: str = "test"
    """The split whose images are classified, for accuracies and predictions; those of the classes that the statistics
    count."""
    limit: int | None = Field(None, ge=1)
    """At most this many of them are classified: the first ones."""
    prompts: Prompts = Prompts()
    """The prompts of the zero-shot classification; an adapter with prompts of its own has those."""

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def _statistics(self, wiring: Wiring) -> dict[str, StatisticsConfig]:
        """The statistics of both sides. Raises UserError if they cannot be compared."""
        found = {}
        for side in SIDES:
            name = getattr(self, side)
            one = wiring.evaluation(name)
            if not isinstance(one, StatisticsConfig):
                raise UserError(
                    f"remapping: `{side}` names `{name}`, which is no evaluation of kind `statistics`; name one that is."
                )
            found[side] = one
        before, after = found.values()
        if before.sae != after.sae:
            raise UserError(
                f"remapping: `before` is of the SAE `{before.sae}` and `after` of `{after.sae}`, whose latents are "
                "others; name statistics of one SAE, or compare the SAEs with an evaluation `matching`."
            )
        datasets = [one.dataset_name(wiring) for one in found.values()]
        if wiring.dataset(datasets[0]) != wiring.dataset(datasets[1]):
            raise UserError(
                f"remapping: `before` counts the images of `{datasets[0]}` and `after` those of `{datasets[1]}`; name "
                "statistics of the same images."
            )
        for name in _SAME:
            values = [getattr(one, name) for one in found.values()]
            if values[0] != values[1]:
                raise UserError(
                    f"remapping: `before` and `after` count different images or tokens: their `{name}` is "
                    f"`{values[0]}` and `{values[1]}`; give both the same."
                )
        return found

    def names(self, wiring: Wiring, evaluation: str) -> Names:
        after = self._statistics(wiring)["after"]
        return Names(after.dataset_name(wiring), after.backbone_name(wiring), after.sae, evaluation)

    def stage_config(self, wiring: Wiring) -> RemappingStageConfig:
        statistics = self._statistics(wiring)
        backbones = {side: wiring.backbone(one.backbone_name(wiring)) for side, one in statistics.items()}
        return RemappingStageConfig(remapping=self, statistics=statistics["before"], **backbones)

    def inputs(self, wiring: Wiring) -> dict[str, str]:
        statistics = self._statistics(wiring)
        dataset = statistics["before"].dataset_name(wiring)
        found = {"images": wiring.index(dataset), "sae": wiring.train(statistics["before"].sae)}
        for side, one in statistics.items():
            backbone = one.backbone_name(wiring)
            mine = {
                "statistics": wiring.evaluate(getattr(self, side)),
                "activations": wiring.extract(dataset, backbone),
                "weights": wiring.weights(backbone),
                "classifier": wiring.classifier(dataset, backbone, self.prompts),
                **wiring.backbone(backbone).inputs(wiring),
            }
            found |= {f"{side} {role}": address for role, address in mine.items()}
        return found


class RemappingStageConfig(Config):
    """The config of the stage: that of the evaluation, the statistics it compares, and their backbones."""

    remapping: Annotated[RemappingConfig, INLINE]
    statistics: Annotated[StatisticsConfig, Unhashed("the statistics are inputs")]
    before: Annotated[BackboneConfig, Unhashed("its weights are an input")]
    after: Annotated[BackboneConfig, Unhashed("its weights are an input")]

    def chosen(self, inputs: Inputs) -> Chosen:
        images, own, counted = inputs["images"], self.remapping, self.statistics
        rows = counted.rows_of(images, counted.split)
        classified = rows_of(images, own.split, counted.classes, own.limit)
        refuse_several_classes(images, classified, "remapping")
        tasks = tasks_of(images, counted.classes)
        labels = labels_of(images)[classified]
        for task in tasks:
            if not np.isin(task.classes, labels).any():
                raise UserError(
                    f"remapping: no image of the {task.name} classes is among the {len(labels):,} that are classified; "
                    "choose another `split`, or a larger `limit`."
                )
        return Chosen(rows, classified, tasks[0].classes, tasks)


def _prepare(config: RemappingStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> int:
    chosen = config.chosen(inputs)
    for side in reversed(SIDES):
        choose_encoder(side_of(inputs, side), out, runtime.device)
    with runtime.reporter.bar("remapping, classes", len(chosen.classes), "classes") as bar:
        write_shared(config.remapping, chosen, inputs, out, bar)
    before = side_of(inputs, "before")
    return sum(
        len(EvaluatedImages(before, rows, runtime.device).parts)
        for rows in (chosen.counted, chosen.classified)
    )


def _worker(config: RemappingStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Worker:
    backbones = {side: getattr(config, side) for side in SIDES}
    counted = config.statistics
    return Worker(
        config.remapping, backbones, config.chosen(inputs), counted.tau, counted.tokens, inputs, out, runtime
    )


def _merge(
    config: RemappingStageConfig,
    inputs: Inputs,
    out: Builder,
    parts: Sequence[ScratchArrays],
    runtime: Runtime,
) -> Summary:
    own, chosen, images = config.remapping, config.chosen(inputs), inputs["images"]
    names, n_latents = class_names_of(images), n_latents_of(inputs)
    n_counting = len(EvaluatedImages(side_of(inputs, "before"), chosen.counted, "cpu").parts)
    n_candidates = own.n_candidates(n_latents)
    n_resampled = min(own.n_resampled, n_candidates) if own.n_bootstrap else 0
    sums = of_classes(
        parts[:n_counting], dict.fromkeys(chosen.classes.tolist(), (n_candidates, n_resampled)), len(own.taus)
    )
    n_images = label_sets_of(images).mask(chosen.counted, chosen.classes).sum(axis=0)
    results = ClassResults(own, config.statistics.tau, n_latents)
    statistics = {side: inputs[f"{side} statistics"] for side in SIDES}
    of_class = zip(counts_of_sides(statistics, chosen.classes, n_latents), n_images.tolist(), strict=True)
    with runtime.reporter.bar("remapping, tables", len(chosen.classes), "classes") as bar:
        for (label, counts), n in bar.over(of_class):
            results.add(label, names[label], counts, n, sums.pop(label, None))
    labels = labels_of(images)[chosen.classified]
    # [2, tasks, 1 + k, n], in the order of the rows.
    predicted = np.concatenate([arrays["predicted"] for arrays in parts[n_counting:]], axis=-1)
    rows = remapping_rows(results, chosen.tasks, len(names), labels, predicted[:, :, 0])
    ks = [None, *own.finite_ks(n_latents).tolist(), *([n_latents] if own.includes_all(n_latents) else [])]
    for schema, of_table in (
        (REMAPPING, rows),
        (REMAPPING_LATENTS, results.members),
        (REMAPPING_PREDICTIONS, list(prediction_rows(chosen.tasks, ks, names, labels, predicted))),
        (REMAPPING_SENSITIVITY, list(sensitivity_rows(results, chosen.tasks, len(names)))),
    ):
        out.write_table(schema, columns([column.name for column in schema.columns], of_table))
    rank = int(out.scratch.read_shared(SHARED).arrays["span"].shape[1])
    summary: Summary = {"n_images": len(chosen.counted), "n_classified": len(labels), "span_rank": rank}
    shown = ("accuracy_before", "accuracy_after", "high", "high_to_low", "low_to_high", "change_explained")
    for row in rows:
        summary |= {f"{row['classes']}_{name}": row[name] for name in shown if row[name] is not None}
    return summary


def _predict(config: RemappingStageConfig, inputs: Upstreams) -> Prediction:
    own, counted = config.remapping, config.statistics
    sides = {side: side_of(inputs, side) for side in SIDES}
    held_out = ImagesConfig(classes=counted.classes, limit=own.limit)
    if (images := inputs["images"].artifact) is not None:
        config.chosen({"images": images})  # Raises UserError as the run does.
    known = [foresee(counted, counted.split, mine) for mine in sides.values()]
    tested = [foresee(held_out, own.split, mine) for mine in sides.values()]
    effort, scratch, n_bytes = [], 0, MANIFEST_BYTES + sum(expected_bytes(one, 0, 0) for one in TABLES)
    for side, one, held in zip(SIDES, known, tested, strict=True):
        if one is None or held is None:
            return Prediction()
        n_tails = held.n_images * (1 + len(own.ks))
        weights = sides[side]["weights"]
        tails = image_amounts(getattr(config, side), weights, n_tails)
        if tails is None:
            return Prediction()
        effort += [*load_amounts(weights), *one.encoding(), *one.decoding(), *held.encoding(), *tails]
        n_rows = one.n_classes * own.n_candidates(one.n_latents) * len(own.taus)
        scratch += one.n_parts * n_rows + one.n_images * 2 * own.n_resampled * (own.n_bootstrap > 0)
        n_bytes += 4 * min(held.n_images, held.n_classes**2) * (1 + len(own.ks)) + 2_000
        n_bytes += 4 * one.n_classes * own.upper
    return Prediction({}, n_bytes, scratch, effort)


STAGE = PartStage(
    name="remapping",
    version=1,
    section="evaluations",
    description="What adaptation did to the latents of every class.",
    prepare=_prepare,
    worker=_worker,
    merge=_merge,
    predict=_predict,
)
