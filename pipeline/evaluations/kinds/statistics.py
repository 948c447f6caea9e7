"""Evaluation `statistics`: tables of what every latent responds to, from one pass over the activations.

This module has its config and its stage. The formulas are in `pipeline.evaluations.statistics.tables`, the
counting is in `counts`, and the merging of parts in `merge`. The evaluation `masking` ranks latents by these
tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from patchsae.pipeline.core.config import OptionalDatasetName, SaeName
from patchsae.pipeline.core.graph import Names
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, PartStage, Runtime, Stage, Within
from patchsae.pipeline.evaluations.evaluated import EvaluatedImages, choose_encoder, open_encoder
from patchsae.pipeline.evaluations.evaluation import AppliedConfig, EvaluationConfig, ImagesConfig, Wiring
from patchsae.pipeline.evaluations.foreseen import distinct, foresee
from patchsae.pipeline.evaluations.statistics.counts import PartCounts
from patchsae.pipeline.evaluations.statistics.effort import counting
from patchsae.pipeline.evaluations.statistics.merge import (
    merge_sums,
    merge_top,
    n_class_groups,
    write_class_latents,
)
from patchsae.pipeline.evaluations.statistics.tables import (
    CLASS_LATENTS,
    LATENT_IMAGES,
    TableSettings,
    latent_columns,
    latent_images_columns,
    latents_schema,
)
from patchsae.pipeline.images.tables import class_names_of
from patchsae.pipeline.saes.quality import firing_summary
from patchsae.pipeline.saes.sae import load_sae
from patchsae.pipeline.saes.sparse.latents import images_per_block
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Builder
from patchsae.storage.manifest import Summary
from patchsae.storage.scratch import ScratchArrays
from patchsae.storage.tables import expected_bytes

# Bytes of a row of the table `latents`: of a dead latent, whose columns are null or 0, and what firing adds.
_BYTES_PER_LATENT, _BYTES_OF_FIRING = 12, 78
# The share of possible rows that the tables per image and class have.
_SHARE_OF_PAIRS = 0.7


class StatisticsConfig(EvaluationConfig, ImagesConfig, AppliedConfig, TableSettings):
    """Statistics of every latent of an SAE over the images of one split."""

    kind: Literal["statistics"] = "statistics"
    sae: SaeName
    dataset: OptionalDatasetName = None
    """The images that are counted; if not given, the SAE's own training dataset."""
    split: str = "train"
    """The split that is counted."""
    tokens: Literal["all", "patches", "with_prompts"] = "all"
    """`all` tokens of the image. `patches` leaves out those that are not patches, such as CLS; `with_prompts` also
    counts learned prompt tokens."""
    tau: Annotated[float, Field(ge=0)] = 0.2
    """Masking ranks latents by the number of tokens on which their activation exceeds tau."""

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def dataset_name(self, wiring: Wiring) -> str:
        return self.dataset or wiring.sae(self.sae).dataset

    def backbone_name(self, wiring: Wiring) -> str:
        return self.backbone_of(wiring.sae(self.sae))

    def inputs(self, wiring: Wiring) -> dict[str, str]:
        dataset = self.dataset_name(wiring)
        return {
            "activations": wiring.extract(dataset, self.backbone_name(wiring)),
            "images": wiring.index(dataset),
            "sae": wiring.train(self.sae),
        }

    def names(self, wiring: Wiring, evaluation: str) -> Names:
        return Names(self.dataset_name(wiring), self.backbone_name(wiring), self.sae, evaluation)

    def rows(self, inputs: Inputs) -> np.ndarray:
        return self.rows_of(inputs["images"], self.split)


def _prepare(config: StatisticsConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> int:
    choose_encoder(inputs, out, runtime.device)
    return len(EvaluatedImages(inputs, config.rows(inputs), runtime.device).parts)


class _Worker:
    """Counts over the images of a part, class by class."""

    def __init__(self, config: StatisticsConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> None:
        self.config = config
        self.images = EvaluatedImages(inputs, config.rows(inputs), runtime.device)
        self.encoder = open_encoder(inputs, out, runtime.device)
        self.tokens = self.images.activations.layout.select(config.tokens)

    def __call__(self, part: int, within: Within) -> Mapping[str, np.ndarray]:
        n_latents = self.encoder.sae.n_latents
        counts = PartCounts(n_latents, self.config.k_images)
        step = images_per_block(n_latents, len(self.tokens))
        for rows, x, labels, again in self.images.blocks_by_class(part, step, within):
            latents = self.encoder.block(x[:, self.tokens.start : self.tokens.stop].flatten(0, 1))
            counts.add(latents, rows, labels, self.config.tau, self.tokens.start, again)
        return counts.arrays()


def _merge(
    config: StatisticsConfig, inputs: Inputs, out: Builder, parts: Sequence[ScratchArrays], runtime: Runtime
) -> Summary:
    sae = load_sae(inputs["sae"])
    n_images = len(config.rows(inputs))
    tokens_per_image = len(Activations(inputs["activations"]).layout.select(config.tokens))
    n_classes = len(class_names_of(inputs["images"]))
    n_passes = 2 + n_class_groups(sae.n_latents, n_classes)
    with runtime.reporter.bar("statistics, tables", n_passes * len(parts), "parts") as bar:
        sums, histogram = merge_sums(bar.over(parts), sae.n_latents)
        best = merge_top(bar.over(parts), sae.n_latents, config.k_images)
        n_firing_classes = write_class_latents(out, parts, sae.n_latents, n_classes, bar)
    columns = latent_columns(
        sums,
        histogram,
        best,
        n_firing_classes,
        torch.linalg.vector_norm(sae.W_dec.double(), dim=1).numpy(),
        n_images,
        tokens_per_image,
        config,
    )
    out.write_table(latents_schema(config.quantiles), columns)
    out.write_table(LATENT_IMAGES, latent_images_columns(best))
    fired = firing_summary(sums.n_tokens, n_images * tokens_per_image, config.dense_above)
    return {"n_images": n_images, **fired}


def _predict(config: StatisticsConfig, inputs: Upstreams) -> Prediction:
    """How many latents an image fires depends on the SAE: half the tokens' entries are taken to be of other latents."""
    known = foresee(config, config.split, inputs)
    if known is None:
        return Prediction()
    fired = distinct(known.l0 * known.tokens / 2, known.n_latents)
    alive = distinct(known.n_images * fired, known.n_latents)
    pairs = min(known.n_classes * known.n_latents, known.n_images * fired) * _SHARE_OF_PAIRS
    top = min(known.n_latents * config.k_images, known.n_images * fired) * _SHARE_OF_PAIRS
    n_bytes = (
        MANIFEST_BYTES
        + expected_bytes(latents_schema(config.quantiles), known.n_latents, _BYTES_PER_LATENT)
        + round(alive * _BYTES_OF_FIRING)
        + expected_bytes(LATENT_IMAGES, top, 14)
        + expected_bytes(CLASS_LATENTS, pairs, 9)
    )
    # A part has counts for every latent, a histogram, its top images, and counts per class.
    per_part = known.n_latents * (60 + 20 * config.k_images)
    scratch = known.n_parts * per_part + round(24 * min(pairs * known.n_parts, known.n_images * fired))
    counted = [(counting(), known.n_pairs)] if known.is_dense else []
    return Prediction({"n_images": known.n_images}, n_bytes, scratch, [*known.encoding(), *counted])


STAGE = PartStage(
    name="statistics",
    version=2,
    section="evaluations",
    description="What every latent responds to.",
    prepare=_prepare,
    worker=_Worker,
    merge=_merge,
    predict=_predict,
)
