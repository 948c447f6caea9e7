"""Evaluation `gallery`: what an explorer shows of every latent, from a sample of the images that statistics count.

The tables are in `pipeline.evaluations.gallery.tables`, and the embeddings that words are compared with in `embeddings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np

from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.backbones.effort import image_amounts, load_amounts
from patchsae.pipeline.core.config import INLINE, Config, EvaluationName, Unhashed
from patchsae.pipeline.core.graph import Names
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, PartStage, Runtime, Stage
from patchsae.pipeline.evaluations.evaluated import EvaluatedImages, choose_encoder, n_latents_of
from patchsae.pipeline.evaluations.evaluation import EvaluationConfig, ImagesConfig, Wiring
from patchsae.pipeline.evaluations.foreseen import distinct, foresee
from patchsae.pipeline.evaluations.gallery.effort import drawing, pairing
from patchsae.pipeline.evaluations.gallery.merge import write_cofiring, write_examples, write_histograms
from patchsae.pipeline.evaluations.gallery.settings import GallerySettings
from patchsae.pipeline.evaluations.gallery.tables import COFIRING, LATENT_EXAMPLES, LATENT_HISTOGRAMS
from patchsae.pipeline.evaluations.gallery.worker import Worker
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.pipeline.images.tables import labels_of
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Builder
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary
from patchsae.storage.scratch import ScratchArrays
from patchsae.storage.tables import expected_bytes


class GalleryConfig(EvaluationConfig, GallerySettings):
    """Examples, histograms, companions and embeddings of every latent, on a sample of images."""

    kind: Literal["gallery"] = "gallery"
    statistics: EvaluationName
    """The evaluation of kind `statistics` that the gallery belongs to: it names the SAE, the images and the tokens."""

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def _statistics(self, wiring: Wiring) -> StatisticsConfig:
        """The statistics. Raises UserError if the evaluation is of another kind."""
        found = wiring.evaluation(self.statistics)
        if not isinstance(found, StatisticsConfig):
            raise UserError(
                f"gallery: `statistics` names `{self.statistics}`, which is no evaluation of kind `statistics`; name one "
                "that is."
            )
        return found

    def names(self, wiring: Wiring, evaluation: str) -> Names:
        return self._statistics(wiring).names(wiring, evaluation)

    def stage_config(self, wiring: Wiring) -> GalleryStageConfig:
        statistics = self._statistics(wiring)
        backbone = wiring.backbone(statistics.backbone_name(wiring))
        return GalleryStageConfig(gallery=self, statistics=statistics, backbone=backbone)

    def inputs(self, wiring: Wiring) -> dict[str, str]:
        statistics = self._statistics(wiring)
        found = {**statistics.inputs(wiring), "statistics": wiring.evaluate(self.statistics)}
        if self.n_embedded:
            backbone = statistics.backbone_name(wiring)
            found |= {"weights": wiring.weights(backbone), **wiring.backbone(backbone).inputs(wiring)}
        return found


class GalleryStageConfig(Config):
    """The config of the stage: that of the evaluation, its statistics, and the backbone their names lead to."""

    gallery: Annotated[GalleryConfig, INLINE]
    statistics: Annotated[StatisticsConfig, Unhashed("the statistics are an input")]
    backbone: Annotated[BackboneConfig, Unhashed("its weights are an input")]

    def images(self) -> ImagesConfig:
        """The sample, among the images of the statistics' split."""
        counted, n = self.statistics, self.gallery.n_images
        return ImagesConfig(
            classes=counted.classes, limit=n if counted.limit is None else min(n, counted.limit)
        )

    def rows(self, inputs: Inputs) -> np.ndarray:
        return self.images().rows_of(inputs["images"], self.statistics.split)


def _prepare(config: GalleryStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> int:
    choose_encoder(inputs, out, runtime.device)
    return len(EvaluatedImages(inputs, config.rows(inputs), runtime.device).parts)


def _worker(config: GalleryStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Worker:
    rows, settings, tokens = config.rows(inputs), config.gallery, config.statistics.tokens
    n_tokens = len(rows) * len(Activations(inputs["activations"]).layout.select(tokens))
    share = settings.share_of_tokens(n_tokens, float(inputs["statistics"].manifest.summary["l0"] or 0))
    return Worker(settings, config.backbone, rows, tokens, share, inputs, out, runtime)


def _merge(
    config: GalleryStageConfig,
    inputs: Inputs,
    out: Builder,
    parts: Sequence[ScratchArrays],
    runtime: Runtime,
) -> Summary:
    settings, rows, n_latents = config.gallery, config.rows(inputs), n_latents_of(inputs)
    labels = labels_of(inputs["images"])[rows]
    with runtime.reporter.bar("gallery, histograms", len(parts), "parts") as bar:
        summary: Summary = {
            "n_images": len(rows),
            **write_histograms(out, bar.over(parts), n_latents),
        }
    reporter = runtime.reporter
    return {
        **summary,
        **write_examples(out, parts, settings, rows, labels, n_latents, reporter),
        **write_cofiring(out, parts, n_latents, settings.n_cofiring, reporter),
    }


# Bytes of a row, and bins of a latent that fires often, by which the tables are predicted.
_BYTES = {LATENT_EXAMPLES: 9, LATENT_HISTOGRAMS: 3, COFIRING: 10}
_MOST_BINS = 24
_BYTES_OF_FIRING = 20


def _predict(config: GalleryStageConfig, inputs: Upstreams) -> Prediction:
    settings = config.gallery
    known = foresee(config.images(), config.statistics.split, inputs)
    if known is None:
        return Prediction()
    n_embedded = min(settings.n_embedded, known.n_images)
    n_tokens = known.n_images * known.tokens
    n_drawn = n_tokens * settings.share_of_tokens(n_tokens, known.l0)
    firings = known.n_images * distinct(known.l0 * known.tokens / 2, known.n_latents)
    alive = distinct(firings, known.n_latents)
    n_rows = {
        LATENT_EXAMPLES: min(alive * len(settings.bands) * settings.n_per_band, 1.2 * firings),
        LATENT_HISTOGRAMS: alive * min(_MOST_BINS, known.l0 * n_tokens / alive),
        COFIRING: min(alive * min(settings.n_cofiring, known.n_latents - 1), n_drawn * known.l0**2),
    }
    n_bytes = MANIFEST_BYTES + sum(expected_bytes(one, n, _BYTES[one]) for one, n in n_rows.items())
    effort: list[Any] = [
        *known.encoding(),
        (drawing(), firings),
        (pairing(), n_drawn * known.l0**2),
    ]
    if n_embedded:
        tails = image_amounts(config.backbone, inputs["weights"], n_embedded)
        if tails is None:
            return Prediction()
        effort += [*load_amounts(inputs["weights"]), *tails]
        # The embedding of CLIP's models has about as many channels as the image tower, or fewer.
        n_bytes += known.n_latents * (2 * known.width * 3 // 4 + 4)
    scratch = _BYTES_OF_FIRING * firings + 4 * n_drawn * known.l0 + 4 * n_embedded * known.width
    return Prediction({"n_images": known.n_images}, round(n_bytes), round(scratch), effort)


STAGE = PartStage(
    name="gallery",
    version=1,
    section="evaluations",
    description="Examples and companions of every latent, for explorers.",
    prepare=_prepare,
    worker=_worker,
    merge=_merge,
    predict=_predict,
)
