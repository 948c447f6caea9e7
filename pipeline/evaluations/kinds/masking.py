"""Evaluation `masking`: zero-shot accuracy with the top k latents kept alone, or taken out (spec 5).

Latents are ranked by an evaluation `statistics` on one split and masked on another split. The rankings `class` and
`class_selective` use the true class of each image, so their accuracies show what latents carry; they are not a
classifier's. Attributes that a dataset has beside its classes are read off the same features, so that the table
says what a mask does to the class and what to everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.backbones.effort import image_amounts, load_amounts
from patchsae.pipeline.classification.classifier import Prompts, load_classifier
from patchsae.pipeline.classification.zero_shot import ZeroShot
from patchsae.pipeline.core.config import (
    INLINE,
    Config,
    EvaluationName,
    HashedUnless,
    OptionalDatasetName,
    Unhashed,
)
from patchsae.pipeline.core.graph import Names
from patchsae.pipeline.core.machine import memory
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.progress import Bar
from patchsae.pipeline.core.stage import Inputs, PartStage, Runtime, Stage, Within
from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.evaluations.evaluated import (
    EvaluatedImages,
    choose_encoder,
    n_latents_of,
    open_encoder,
)
from patchsae.pipeline.evaluations.evaluation import AppliedConfig, EvaluationConfig, ImagesConfig, Wiring
from patchsae.pipeline.evaluations.foreseen import foresee
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.pipeline.evaluations.masking.sweep import Correct, Reading, count_correct
from patchsae.pipeline.evaluations.masking.table import (
    Condition,
    Labelling,
    masking_columns,
    masking_schema,
    masking_summary,
)
from patchsae.pipeline.evaluations.statistics.rankings import (
    class_ranking,
    dataset_ranking,
    random_ranking,
    selective_ranking,
)
from patchsae.pipeline.images.attributes import attribute_sets_of
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.tables import class_names_of, expected_classes, label_sets_of, labels_of
from patchsae.pipeline.saes.sparse.latents import images_per_block
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary
from patchsae.storage.scratch import ScratchArrays
from patchsae.storage.tables import expected_bytes

Selection = Literal["class", "class_selective", "dataset", "random"]
_BY_CLASS = ("class", "class_selective")
_RANKINGS = "rankings"
_BYTES_PER_ROW = 8


class MaskingConfig(EvaluationConfig, ImagesConfig, AppliedConfig):
    """Zero-shot accuracy on one split for every selection of latents, mode and k."""

    kind: Literal["masking"] = "masking"
    statistics: EvaluationName
    """The evaluation of kind `statistics` whose counts rank the latents. It also names the SAE."""
    dataset: OptionalDatasetName = None
    """The images that are classified; if not given, the dataset of the statistics. For the selection `class`
    both must have the same classes."""
    split: str = "test"
    """The split that is classified."""
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
    """How many latents are switched on or off. The number of all latents, or more, means `all`."""
    selections: tuple[Selection, ...] = ("class", "class_selective", "dataset", "random")
    """Which latents come first: those most active in the image's true class (`class`, the paper's), those most
    active there and little in other classes (`class_selective`, not in the paper), those most active in the whole
    split, or random ones."""
    modes: tuple[Literal["on", "off"], ...] = ("on", "off")
    """`on`: only the k latents are on. `off`: only the k latents are off."""
    n_random: Annotated[int, Field(ge=1)] = 10
    """Number of random rankings, which have the seeds 0, 1, ... Accuracies differ much from seed to seed, and the
    intervals are as wide as the seeds show."""
    random_pool: Literal["alive", "all"] = "alive"
    """With `alive`, a random ranking has the latents that fire on the statistics' split first and the dead
    ones after them; with `all`, they are mixed."""
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

    def _selected_on(self, wiring: Wiring) -> StatisticsConfig:
        statistics = wiring.evaluation(self.statistics)
        if not isinstance(statistics, StatisticsConfig):
            raise UserError(
                f"masking: `statistics` names `{self.statistics}`, which is no evaluation of kind `statistics`; "
                "name one that is."
            )
        return statistics

    def names(self, wiring: Wiring, evaluation: str) -> Names:
        statistics = self._selected_on(wiring)
        dataset = self.dataset or statistics.dataset_name(wiring)
        return Names(dataset, self.backbone_of(wiring.sae(statistics.sae)), statistics.sae, evaluation)

    def stage_config(self, wiring: Wiring) -> MaskingStageConfig:
        statistics = self._selected_on(wiring)
        dataset = wiring.dataset(self.dataset or statistics.dataset_name(wiring))
        return MaskingStageConfig(
            masking=self,
            backbone=wiring.backbone(self.backbone_of(wiring.sae(statistics.sae))),
            attributes=self._attributes(dataset),
            class_attribute=dataset.class_attribute(),
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
        selected_on = statistics.dataset_name(wiring)
        dataset = self.dataset or selected_on
        backbone = self.backbone_of(wiring.sae(statistics.sae))
        attributes = self._attributes(wiring.dataset(dataset))
        read = {_classifier(a): wiring.classifier(dataset, backbone, self.prompts, a) for a in attributes}
        return {
            "statistics": wiring.evaluate(self.statistics),
            "activations": wiring.extract(dataset, backbone),
            "images": wiring.index(dataset),
            "selection_images": wiring.index(selected_on),
            "sae": wiring.train(statistics.sae),
            "weights": wiring.weights(backbone),
            "classifier": wiring.classifier(dataset, backbone, self.prompts),
            **({"attributes": wiring.attributes(dataset)} if read else {}),
            **read,
            **wiring.backbone(backbone).inputs(wiring),
        }


def _classifier(attribute: str) -> str:
    """The role of the classifier of an attribute's values."""
    return f"classifier {attribute}"


class MaskingStageConfig(Config):
    """The config of the stage: that of the evaluation, and the backbone its names lead to."""

    masking: Annotated[MaskingConfig, INLINE]
    backbone: Annotated[BackboneConfig, Unhashed("its weights are an input")]
    attributes: Annotated[tuple[str, ...], HashedUnless(())] = ()
    class_attribute: Annotated[str | None, HashedUnless(None)] = None

    def finite_ks(self, n_latents: int) -> np.ndarray:
        """The k that are fewer than all latents, ascending; each is computed."""
        return np.array([k for k in self.masking.ks if isinstance(k, int) and k < n_latents], np.int64)

    def includes_all(self, n_latents: int) -> bool:
        return len(self.finite_ks(n_latents)) < len(self.masking.ks)

    def rankings(self) -> list[tuple[str, int | None]]:
        """(selection, seed) of every ranking, in the order of the table; the seed is None unless random."""
        seeds = range(self.masking.n_random)
        return [
            (selection, seed)
            for selection in self.masking.selections
            for seed in (seeds if selection == "random" else [None])
        ]

    def selections_by_class(self) -> list[str]:
        """The selections that depend on the class of an image."""
        return [selection for selection in self.masking.selections if selection in _BY_CLASS]

    def rows(self, inputs: Inputs) -> np.ndarray:
        return self.masking.rows_of(inputs["images"], self.masking.split)


def _prepare(config: MaskingStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> int:
    _check_classes(config, inputs)
    choose_encoder(inputs, out, runtime.device)
    with runtime.reporter.bar("masking, rankings", len(config.rankings()), "rankings") as bar:
        _write_rankings(config, inputs, out, bar)
    return len(EvaluatedImages(inputs, config.rows(inputs), runtime.device).parts)


def _check_classes(config: MaskingStageConfig, inputs: Inputs) -> None:
    _refuse_several_classes(config, inputs["images"])
    if chosen := config.selections_by_class():
        here, there = (class_names_of(inputs[role]) for role in ("images", "selection_images"))
        _refuse_other_classes(here, there, chosen)


def _refuse_several_classes(config: MaskingStageConfig, images: Artifact) -> None:
    rows = config.masking.rows_of(images, config.masking.split)
    n_several = int((label_sets_of(images).counts(rows) > 1).sum())
    if n_several:
        raise UserError(
            f"masking: {n_several:,} of the {len(rows):,} images are of several classes, and accuracy is counted by "
            "the class of an image; choose a split whose images have one."
        )


def _refuse_other_classes(
    here: Sequence[str] | None, there: Sequence[str] | None, selections: Sequence[str]
) -> None:
    """Raises UserError if both are known and differ."""
    if here is not None and there is not None and list(here) != list(there):
        raise UserError(
            f"masking: the dataset has other classes ({len(here)}) than the one its "
            f"latents are selected on ({len(there)}); make statistics of this dataset, or leave "
            f"{' and '.join(f'`{selection}`' for selection in selections)} out of `selections`."
        )


def _write_rankings(config: MaskingStageConfig, inputs: Inputs, out: Builder, bar: Bar) -> None:
    """Writes one array per ranking to scratch, which all parts read: [C, K] by class, else [1, K]."""
    masking, statistics = config.masking, inputs["statistics"]
    n_latents, n_classes = n_latents_of(inputs), len(class_names_of(inputs["images"]))
    n_ranked = int(config.finite_ks(n_latents).max(initial=0))
    latents = statistics.scan("latents").select("n_tokens_above", "dead").collect()
    arrays = {}
    for i, (selection, seed) in enumerate(bar.over(config.rankings())):
        if selection == "class_selective":
            of_dataset = latents["n_tokens_above"].to_numpy()
            arrays[str(i)] = selective_ranking(
                statistics, n_latents, n_classes, n_ranked, of_dataset, bar.within
            )
        elif selection == "class":
            arrays[str(i)] = class_ranking(statistics, n_latents, n_classes, n_ranked, bar.within)
        elif selection == "dataset":
            arrays[str(i)] = dataset_ranking(latents, n_ranked)[None]
        else:
            assert seed is not None
            arrays[str(i)] = random_ranking(latents, n_ranked, seed, masking.random_pool == "alive")[None]
    out.scratch.share(_RANKINGS, arrays, {})


class _Worker:
    """Classifies the images of a part under every ranking, mode and k."""

    def __init__(self, config: MaskingStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> None:
        self.config = config
        self.device = runtime.device
        self.images = EvaluatedImages(inputs, config.rows(inputs), runtime.device)
        self.encoder = open_encoder(inputs, out, runtime.device)
        task = config.masking.task_classes(inputs["images"])
        self.zero_shot = ZeroShot.load(config.backbone, inputs, runtime.device, runtime.reporter, task)
        self.n_classes = len(class_names_of(inputs["images"]))
        self.attributes = [
            (
                load_classifier(inputs[_classifier(attribute)], runtime.device)[0],
                attribute_sets_of(inputs["attributes"], attribute),
            )
            for attribute in config.attributes
        ]
        written = out.scratch.read_shared(_RANKINGS).arrays
        self.rankings = [
            torch.tensor(written[str(i)], device=runtime.device).long() for i in range(len(config.rankings()))
        ]

    def __call__(self, part: int, within: Within) -> Mapping[str, np.ndarray]:
        sae, masking = self.encoder.sae, self.config.masking
        ks = self.config.finite_ks(sae.n_latents)
        tokens = self.images.activations.layout.select(masking.tokens)
        correct = Correct.zeros(len(self.rankings), len(ks), 1 + len(self.attributes), self.n_classes)
        read = [
            (self.zero_shot.embeddings, self.images.label_sets, self.zero_shot.classes),
            *((values, sets, np.arange(len(values))) for values, sets in self.attributes),
        ]
        step = images_per_block(sae.n_latents, len(tokens))
        for rows, x, labels in self.images.blocks(part, step, within):
            latents = self.encoder.block(x[:, tokens.start : tokens.stop].flatten(0, 1))
            of_label = torch.from_numpy(labels).to(self.device)
            mine = [ranking if len(ranking) == 1 else ranking[of_label] for ranking in self.rankings]
            readings = [
                Reading(values, torch.from_numpy(sets.mask(rows, ids)).to(self.device))
                for values, sets, ids in read
            ]
            count_correct(
                correct, x, latents, labels, readings, mine, ks, sae, self.zero_shot, masking.modes, tokens
            )
        return correct.arrays()


def _merge(
    config: MaskingStageConfig, inputs: Inputs, out: Builder, parts: Sequence[ScratchArrays], runtime: Runtime
) -> Summary:
    n_latents = n_latents_of(inputs)
    class_names = class_names_of(inputs["images"])
    n_ks, n_readings = len(config.finite_ks(n_latents)), 1 + len(config.attributes)
    correct = Correct.zeros(len(config.rankings()), n_ks, n_readings, len(class_names))
    for arrays in parts:
        correct.merge(arrays)
    found = conditions(config, correct, n_latents)
    labels = labels_of(inputs["images"])[config.rows(inputs)]
    n_images = np.bincount(labels, minlength=len(class_names))
    labelling = Labelling(class_names, config.class_attribute, config.attributes)
    out.write_table(
        masking_schema(config.attributes), masking_columns(found, config.masking.split, n_images, labelling)
    )
    return masking_summary(found, n_images, config.attributes)


def conditions(config: MaskingStageConfig, correct: Correct, n_latents: int) -> list[Condition]:
    """Every way of replacing activations with its counts, in the order of the table."""
    found = [
        Condition("none", "original", None, None, correct.original),
        Condition("none", "reconstruction", n_latents, None, correct.reconstruction),
    ]
    # With all latents on, the result is the reconstruction; with all off, the bias. Neither depends on a
    # ranking.
    everything = {"on": correct.reconstruction, "off": correct.bias}
    for (selection, seed), masked in zip(config.rankings(), correct.masked, strict=True):
        for mode in config.masking.modes:
            of_mode = masked[("on", "off").index(mode)]
            for k, n_correct in zip(config.finite_ks(n_latents), of_mode, strict=True):
                found.append(Condition(selection, mode, int(k), seed, n_correct))
            if config.includes_all(n_latents):
                found.append(Condition(selection, mode, n_latents, seed, everything[mode]))
    return found


def _predict(config: MaskingStageConfig, inputs: Upstreams) -> Prediction:
    masking = config.masking
    if (images := inputs["images"].artifact) is not None:
        _refuse_several_classes(config, images)
    if chosen := config.selections_by_class():
        here, there = (expected_classes(inputs[role]) for role in ("images", "selection_images"))
        _refuse_other_classes(here, there, chosen)
    known = foresee(masking, masking.split, inputs)
    if known is None:
        return Prediction()
    n_ks, n_ways = len(config.finite_ks(known.n_latents)), len(config.rankings()) * len(masking.modes)
    n_masked = n_ways * n_ks
    tails = image_amounts(config.backbone, inputs["weights"], known.n_images * (n_masked + 3))
    if tails is None:
        return Prediction()
    n_conditions = n_masked + 2 + n_ways * config.includes_all(known.n_latents)
    n_rows = n_conditions * (known.n_classes + 1)
    n_bytes = MANIFEST_BYTES + expected_bytes(masking_schema(config.attributes), n_rows, _BYTES_PER_ROW)
    n_ranked = int(config.finite_ks(known.n_latents).max(initial=0))
    shared = 8 * n_ranked * (known.n_classes * len(config.selections_by_class()) + len(config.rankings()))
    per_part = 8 * known.n_classes * (3 + 2 * len(config.rankings()) * n_ks) + 4_000
    # Each ranking adds up the decoder rows of its latents once more.
    n_rows_added = 0.0 if known.is_dense else known.l0 * len(config.rankings())
    moved = 4.0 * known.n_images * known.tokens * known.width * (n_rows_added + 4 * n_masked)
    effort = [
        *load_amounts(inputs["weights"]),
        *known.encoding(),
        *known.decoding(known.n_latents + n_ranked * len(config.rankings())),
        (memory(), moved),
        *tails,
    ]
    return Prediction({}, n_bytes, shared + known.n_parts * per_part, effort)


STAGE = PartStage(
    name="masking",
    version=3,
    section="evaluations",
    description="Accuracy with latents switched on or off.",
    changes={3: "reads every attribute off each masked activation, and has ten random seeds in its interval"},
    prepare=_prepare,
    worker=_Worker,
    merge=_merge,
    predict=_predict,
)
