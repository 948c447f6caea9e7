"""What every part of the evaluation `masking` needs, and the worker that classifies the images of a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.classification.classifier import load_classifier
from patchsae.pipeline.classification.zero_shot import ZeroShot
from patchsae.pipeline.core.progress import Bar
from patchsae.pipeline.core.stage import Inputs, Runtime, Within
from patchsae.pipeline.evaluations.evaluated import EvaluatedImages, n_latents_of, open_encoder
from patchsae.pipeline.evaluations.masking.classify import Order, Reading, classify
from patchsae.pipeline.evaluations.masking.correct import Correct
from patchsae.pipeline.evaluations.masking.distinct import keys_of
from patchsae.pipeline.evaluations.masking.orders import means_of, orders_of
from patchsae.pipeline.evaluations.masking.settings import BY_PREDICTION, MaskingSettings
from patchsae.pipeline.images.attributes import attribute_sets_of
from patchsae.pipeline.images.tables import Classes, class_names_of, task_classes
from patchsae.pipeline.saes.sparse.latents import images_per_block
from patchsae.storage.artifacts import Builder
from patchsae.storage.tokens import TokenSelection

_RANKINGS = "rankings"
_MEANS = "means {}"


def write_orders(
    settings: MaskingSettings, counted: Sequence[Classes | None], inputs: Inputs, out: Builder, bar: Bar
) -> None:
    """Writes the order of every ranking to scratch, and with `ablation: mean` the means of latents.

    `counted` are the classes that each of the statistics counts.
    """
    roles = ["statistics" if i == 0 else f"statistics {i}" for i in range(len(counted))]
    statistics = [inputs[role] for role in roles]
    n_classes = len(class_names_of(inputs["images"]))
    n_even = [
        len(task_classes(inputs["selection_images"], one)) if isinstance(one, str) else n_classes
        for one in counted
    ]
    arrays = orders_of(settings, statistics, n_latents_of(inputs), n_classes, n_even, bar)
    if settings.ablation == "mean":
        arrays |= {_MEANS.format(i): means_of(one) for i, one in enumerate(statistics)}
    out.scratch.share(_RANKINGS, arrays, {})


class Worker:
    """Classifies the images of a part under every ranking, mode and k."""

    def __init__(
        self,
        settings: MaskingSettings,
        backbone: BackboneConfig,
        attributes: Sequence[str],
        rows: np.ndarray,
        n_statistics: int,
        tokens: TokenSelection,
        task: np.ndarray,
        inputs: Inputs,
        out: Builder,
        runtime: Runtime,
    ) -> None:
        self.settings, self.device = settings, runtime.device
        self.images = EvaluatedImages(inputs, rows, runtime.device)
        self.tokens = self.images.activations.layout.select(tokens)
        self.encoder = open_encoder(inputs, out, runtime.device)
        self.zero_shot = ZeroShot.load(backbone, inputs, runtime.device, runtime.reporter, task)
        self.n_classes = len(class_names_of(inputs["images"]))
        self.attributes = [
            (
                load_classifier(inputs[f"classifier {attribute}"], runtime.device)[0],
                attribute_sets_of(inputs["attributes"], attribute),
            )
            for attribute in attributes
        ]
        sae = self.encoder.sae
        self.ks = settings.finite_ks(sae.n_latents)
        self.keys = keys_of(sae.n_latents, runtime.device)
        written = out.scratch.read_shared(_RANKINGS).arrays
        means = []
        if settings.ablation == "mean":
            means = [
                torch.tensor(written[_MEANS.format(i)], device=runtime.device) for i in range(n_statistics)
            ]
        self.off = [one @ sae.W_dec for one in means]
        shared: dict[str, tuple[Tensor, Tensor | None]] = {}
        self.orders = []
        for ranking in settings.rankings(n_statistics):
            base = (ranking.statistics or 0) if means else 0
            if ranking.order not in shared:
                latents = torch.tensor(written[ranking.order], device=runtime.device).long()
                off = off_of_top(latents, self.ks, means[base], sae.W_dec) if means else None
                shared[ranking.order] = latents, off
            self.orders.append(Order(*shared[ranking.order], base, ranking.selection in BY_PREDICTION))

    def __call__(self, part: int, within: Within) -> Mapping[str, np.ndarray]:
        sae, n_readings = self.encoder.sae, 1 + len(self.attributes)
        correct = Correct.zeros(
            len(self.orders), len(self.ks), n_readings, self.n_classes, max(1, len(self.off))
        )
        read = [
            (self.zero_shot.embeddings, self.images.label_sets, self.zero_shot.classes),
            *((values, sets, np.arange(len(values))) for values, sets in self.attributes),
        ]
        classes = torch.from_numpy(self.zero_shot.classes).to(self.device)
        step = images_per_block(sae.n_latents, len(self.tokens))
        for rows, x, labels in self.images.blocks(part, step, within):
            latents = self.encoder.block(x[:, self.tokens.start : self.tokens.stop].flatten(0, 1))
            readings = [
                Reading(values, torch.from_numpy(sets.mask(rows, ids)).to(self.device))
                for values, sets, ids in read
            ]
            outcomes = classify(
                x,
                latents,
                torch.from_numpy(labels).to(self.device).long(),
                readings,
                self.orders,
                self.ks,
                sae,
                self.zero_shot,
                self.settings.modes,
                self.tokens,
                self.keys,
                self.settings.error,
                self.off,
                classes,
            )
            correct.add(outcomes, labels, keep=self.settings.n_bootstrap > 0)
        return correct.arrays()


def off_of_top(latents: Tensor, ks: np.ndarray, means: Tensor, W_dec: Tensor) -> Tensor:
    """What the top k latents of each order, set to their means, give to a token: [C, k, d] for latents [C, K]."""
    found = torch.zeros(len(latents), len(ks), W_dec.shape[1], device=W_dec.device)
    start = 0
    for step, stop in enumerate(ks.tolist()):
        for of_one, some in zip(found, latents[:, start:stop], strict=True):
            of_one[step] = means[some] @ W_dec[some]
        start = stop
    return found.cumsum(1)
