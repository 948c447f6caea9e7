"""What every part of the evaluation `remapping` needs, and the worker of its parts.

The first parts are those of the images that the statistics count, the others those of the images that are classified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from patchsae.pipeline.activations.parts import PartImages
from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.classification.zero_shot import ZeroShot
from patchsae.pipeline.core.progress import Bar
from patchsae.pipeline.core.stage import Inputs, Runtime, Within
from patchsae.pipeline.evaluations.evaluated import EvaluatedImages, n_latents_of, open_encoder
from patchsae.pipeline.evaluations.remapping.counting import Counting, span_of
from patchsae.pipeline.evaluations.remapping.predicting import Predictions
from patchsae.pipeline.evaluations.remapping.settings import RemappingSettings, Task
from patchsae.pipeline.evaluations.remapping.sides import SIDES, candidates, counts_of_sides, side_of
from patchsae.pipeline.evaluations.statistics.rankings import by_count
from patchsae.pipeline.saes.sae import load_sae
from patchsae.pipeline.saes.sparse.latents import images_per_block
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Builder
from patchsae.storage.tokens import TokenSelection

SHARED = "candidates"


@dataclass(frozen=True)
class Chosen:
    """Which images and classes an evaluation is about."""

    counted: np.ndarray  # row numbers of the images that the statistics count
    classified: np.ndarray  # row numbers of the images that are classified
    classes: np.ndarray  # ascending ids of the classes that the statistics count
    tasks: list[Task]


def write_shared(settings: RemappingSettings, chosen: Chosen, inputs: Inputs, out: Builder, bar: Bar) -> None:
    """Writes the candidates and the ranking of every class, and the span of the decoder, to scratch."""
    n_latents = n_latents_of(inputs)
    statistics = {side: inputs[f"{side} statistics"] for side in SIDES}
    n = settings.n_candidates(n_latents)
    n_ranked = int(settings.finite_ks(n_latents).max(initial=0))
    ranked_by = SIDES.index(settings.ranked_by)
    found, ranking = [], np.zeros((len(chosen.classes), n_ranked), np.int32)
    for i, (_, counts) in enumerate(counts_of_sides(statistics, chosen.classes, n_latents)):
        found.append(candidates(counts, n))
        ranking[i] = by_count(counts.n_tokens[ranked_by], n_ranked)
        bar.advance()
    dead = [statistics[side].scan("latents").select("dead").collect()["dead"].to_numpy() for side in SIDES]
    span = span_of(load_sae(inputs["sae"]).W_dec[~np.logical_and(*dead)])
    arrays = {"candidates": np.stack(found), "ranking": ranking, "span": span.numpy()}
    out.scratch.share(SHARED, arrays, {})


class Worker:
    """Counts a part of the statistics' images, or predicts a part of the held-out ones."""

    def __init__(
        self,
        settings: RemappingSettings,
        backbones: Mapping[str, BackboneConfig],
        chosen: Chosen,
        tau: float,
        tokens: TokenSelection,
        inputs: Inputs,
        out: Builder,
        runtime: Runtime,
    ) -> None:
        self.settings, self.backbones, self.chosen, self.tau = settings, backbones, chosen, tau
        self.inputs, self.runtime, self.device = inputs, runtime, runtime.device
        self.encoder = open_encoder(inputs, out, runtime.device)
        before = side_of(inputs, "before")
        self.counted = EvaluatedImages(before, chosen.counted, runtime.device)
        self.classified = EvaluatedImages(before, chosen.classified, runtime.device)
        self.activations = {side: Activations(inputs[f"{side} activations"]) for side in SIDES}
        self.tokens = {side: one.layout.select(tokens) for side, one in self.activations.items()}
        shared = out.scratch.read_shared(SHARED).arrays
        self.candidates = dict(zip(chosen.classes.tolist(), shared["candidates"], strict=True))
        self.span = torch.tensor(shared["span"], device=runtime.device)
        n_classes = int(max(task.among.max() for task in chosen.tasks)) + 1
        self.ranking = torch.zeros(n_classes, shared["ranking"].shape[1], dtype=torch.long)
        self.ranking[torch.from_numpy(chosen.classes)] = torch.tensor(shared["ranking"]).long()
        self.ranking = self.ranking.to(runtime.device)
        self._predictions: dict[str, Predictions] = {}

    def __call__(self, part: int, within: Within) -> Mapping[str, np.ndarray]:
        if part < len(self.counted.parts):
            return self._count(part, within)
        return self._predict(part - len(self.counted.parts), within)

    def _step(self) -> int:
        return images_per_block(self.encoder.sae.n_latents, max(map(len, self.tokens.values())))

    def _count(self, part: int, within: Within) -> Mapping[str, np.ndarray]:
        settings = self.settings
        n_resampled = settings.n_resampled if settings.n_bootstrap else 0
        counting = Counting(self.encoder, self.candidates, n_resampled, self.tau, settings.taus, self.span)
        after = PartImages(self.activations["after"], self.counted.parts[part], self.device)
        first, second = (slice(one.start, one.stop) for one in self.tokens.values())
        for rows, x, labels, _ in self.counted.blocks_by_class(part, self._step(), within):
            # An image of several classes is counted for those that the statistics are about.
            mine = np.isin(labels, self.chosen.classes)
            if mine.any():
                kept = torch.from_numpy(mine)
                counting.add(x[kept][:, first], after.take(rows[mine])[:, second], labels[mine])
        return counting.arrays()

    def _predict(self, part: int, within: Within) -> Mapping[str, np.ndarray]:
        rows = self.classified.parts[part]
        after = PartImages(self.activations["after"], rows, self.device)
        found = []
        for some, x, labels in self.classified.blocks(part, self._step(), within):
            sides = zip(SIDES, (x, after.take(some)), strict=True)
            found.append(np.stack([self._of(side).of(values, labels) for side, values in sides]))
        return {"predicted": np.concatenate(found, axis=-1)}

    def _of(self, side: str) -> Predictions:
        """What predicts with a side's backbone, which is loaded when it is needed first."""
        if side not in self._predictions:
            zero_shot = ZeroShot.load(
                self.backbones[side], side_of(self.inputs, side), self.device, self.runtime.reporter
            )
            n_latents = self.encoder.sae.n_latents
            self._predictions[side] = Predictions(
                self.encoder,
                zero_shot,
                self.ranking,
                self.settings.finite_ks(n_latents),
                self.settings.includes_all(n_latents),
                self.chosen.tasks,
                self.tokens[side],
            )
        return self._predictions[side]
