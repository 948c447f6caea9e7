"""Evaluation `reconstruction`: how well an SAE reconstructs activations, and how much accuracy is kept.

The activations of all tokens of the image are replaced. The contrastive score corrects that of the paper's released code
(spec 2.8): it uses real class names, replaces all tokens instead of the class token alone, and counts every
class once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch

from patchsae.pipeline.activations.parts import PartImages
from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.backbones.effort import image_amounts, load_amounts
from patchsae.pipeline.classification.zero_shot import ZeroShot
from patchsae.pipeline.core.config import INLINE, Config, SaeName, Unhashed
from patchsae.pipeline.core.graph import Names
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, PartStage, Runtime, Stage, Within
from patchsae.pipeline.evaluations.evaluated import EvaluatedImages, choose_encoder, open_encoder
from patchsae.pipeline.evaluations.evaluation import AppliedConfig, EvaluationConfig, HeldOutConfig, Wiring
from patchsae.pipeline.evaluations.foreseen import foresee
from patchsae.pipeline.evaluations.intervals import wilson_interval
from patchsae.pipeline.evaluations.reconstruction.ablation import REPLACED, Outcomes, kept
from patchsae.pipeline.evaluations.reconstruction.tables import (
    FIRING_HISTOGRAM,
    RECONSTRUCTION,
    firing_histogram,
)
from patchsae.pipeline.saes.quality import Quality
from patchsae.pipeline.saes.sparse.latents import images_per_block
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Builder
from patchsae.storage.manifest import Summary
from patchsae.storage.scratch import ScratchArrays
from patchsae.storage.tables import expected_bytes

_MEAN = "mean"


class ReconstructionConfig(EvaluationConfig, HeldOutConfig, AppliedConfig):
    """Quality of an SAE's reconstruction on one split of a dataset."""

    kind: Literal["reconstruction"] = "reconstruction"
    sae: SaeName

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def names(self, wiring: Wiring, evaluation: str) -> Names:
        sae = wiring.sae(self.sae)
        return Names(self.dataset or sae.dataset, self.backbone_of(sae), self.sae, evaluation)

    def stage_config(self, wiring: Wiring) -> ReconstructionStageConfig:
        backbone = wiring.backbone(self.backbone_of(wiring.sae(self.sae)))
        return ReconstructionStageConfig(reconstruction=self, backbone=backbone)

    def inputs(self, wiring: Wiring) -> dict[str, str]:
        sae = wiring.sae(self.sae)
        dataset, backbone = self.dataset or sae.dataset, self.backbone_of(sae)
        return {
            "activations": wiring.extract(dataset, backbone),
            "images": wiring.index(dataset),
            "sae": wiring.train(self.sae),
            "weights": wiring.weights(backbone),
            "classifier": wiring.classifier(dataset, backbone, self.prompts),
            **wiring.backbone(backbone).inputs(wiring),
        }


class ReconstructionStageConfig(Config):
    """The config of the stage: that of the evaluation, and the backbone its name leads to."""

    reconstruction: Annotated[ReconstructionConfig, INLINE]
    backbone: Annotated[BackboneConfig, Unhashed("its weights are an input")]

    def rows(self, inputs: Inputs) -> np.ndarray:
        return self.reconstruction.rows_of(inputs["images"], self.reconstruction.split)


def _prepare(config: ReconstructionStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> int:
    choose_encoder(inputs, out, runtime.device)
    images = EvaluatedImages(inputs, config.rows(inputs), runtime.device)
    tokens = images.activations.layout.select(config.reconstruction.tokens)
    out.scratch.share(_MEAN, {"mean": _mean_activation(images, tokens, runtime)}, {})
    return len(images.parts)


def _mean_activation(images: EvaluatedImages, tokens: range, runtime: Runtime) -> np.ndarray:
    """The mean activation over these tokens of all images: float32 [d]."""
    activations = images.activations
    total = np.zeros(activations.width)
    with runtime.reporter.bar("reconstruction, mean", len(images.rows), "images") as bar:
        for part in images.parts:
            for chunk in np.split(part, np.flatnonzero(np.diff(part // activations.chunk_images)) + 1):
                x = PartImages(activations, chunk, "cpu").take(chunk)[:, tokens.start : tokens.stop]
                total += x.double().sum(dim=(0, 1)).numpy()
                bar.advance(len(chunk))
    return (total / (len(images.rows) * len(tokens))).astype(np.float32)


class _Worker:
    """Sums errors and counts correct images over the images of a part."""

    def __init__(
        self, config: ReconstructionStageConfig, inputs: Inputs, out: Builder, runtime: Runtime
    ) -> None:
        self.device = runtime.device
        self.images = EvaluatedImages(inputs, config.rows(inputs), runtime.device)
        self.encoder = open_encoder(inputs, out, runtime.device)
        task = config.reconstruction.task_classes(inputs["images"])
        self.zero_shot = ZeroShot.load(config.backbone, inputs, runtime.device, runtime.reporter, task)
        self.tokens = self.images.activations.layout.select(config.reconstruction.tokens)
        self.mean = torch.tensor(out.scratch.read_shared(_MEAN).arrays["mean"], device=runtime.device)

    def __call__(self, part: int, within: Within) -> Mapping[str, np.ndarray]:
        sae = self.encoder.sae
        quality, outcomes = Quality(sae.width, sae.n_latents, self.device), Outcomes()
        replaced = slice(self.tokens.start, self.tokens.stop)
        step = images_per_block(sae.n_latents, len(self.tokens))
        for image_rows, x, _ in self.images.blocks(part, step, within):
            tokens = x[:, replaced].flatten(0, 1)
            x_hat = torch.empty_like(tokens)
            for rows, latents in self.encoder.blocks(tokens):
                x_hat[rows] = latents.decode(latents.value, sae.W_dec) + sae.b_dec
                quality.add(tokens[rows], x_hat[rows], latents)
            label_sets = self.images.label_sets.mask(image_rows, self.zero_shot.classes)
            on_device = torch.from_numpy(label_sets).to(self.device)
            x_hat = x_hat.view_as(x[:, replaced])
            outcomes.add(self.zero_shot, x, x_hat, self.mean, on_device, self.tokens)
        return {**quality.arrays(), **vars(outcomes)}


def _merge(
    config: ReconstructionStageConfig,
    inputs: Inputs,
    out: Builder,
    parts: Sequence[ScratchArrays],
    runtime: Runtime,
) -> Summary:
    quality = Quality(Activations(inputs["activations"]).width, len(parts[0]["n_fired"]))
    outcomes = Outcomes()
    for arrays in parts:
        quality.merge(arrays)
        outcomes.merge(arrays)
    n_images = len(config.rows(inputs))
    accuracy = dict(zip(REPLACED, (outcomes.n_correct / n_images).tolist(), strict=True))
    set_accuracy = dict(zip(REPLACED, (outcomes.n_sets_correct / n_images).tolist(), strict=True))
    entropy = dict(zip(REPLACED, (outcomes.cross_entropy / n_images).tolist(), strict=True))
    kl = dict(zip(REPLACED, (outcomes.kl_to_original / n_images).tolist(), strict=True))
    n = np.full(len(REPLACED), n_images)
    low, high = wilson_interval(outcomes.n_correct, n)
    set_low, set_high = wilson_interval(outcomes.n_sets_correct, n)
    out.write_table(
        RECONSTRUCTION,
        {
            "replaced": REPLACED,
            "n": [n_images] * len(REPLACED),
            "n_correct": outcomes.n_correct,
            "accuracy": list(accuracy.values()),
            "ci_low": low,
            "ci_high": high,
            "cross_entropy": list(entropy.values()),
            "n_sets_correct": outcomes.n_sets_correct,
            "set_accuracy": list(set_accuracy.values()),
            "set_ci_low": set_low,
            "set_ci_high": set_high,
            "kl_to_original": list(kl.values()),
        },
    )
    out.write_table(
        FIRING_HISTOGRAM,
        firing_histogram(quality.n_fired.numpy(), quality.reconstruction.n_tokens),
    )
    found: Summary = {
        **quality.summary(),
        "n_images": n_images,
        **{f"accuracy_{way}": value for way, value in accuracy.items()},
        **{f"set_accuracy_{way}": value for way, value in set_accuracy.items()},
        **{f"kl_{way}": value for way, value in kl.items() if way != "original"},
    }
    for ablated in ("mean", "zero"):
        ways = ("reconstruction", "original", ablated)
        share = kept(*(accuracy[way] for way in ways))
        share_of_sets = kept(*(set_accuracy[way] for way in ways))
        damage = kept(*(-entropy[way] for way in ways))
        if share is not None:
            found[f"zero_shot_kept_{ablated}"] = share
        if share_of_sets is not None:
            found[f"set_kept_{ablated}"] = share_of_sets
        if damage is not None:
            # The increase in cross entropy by the SAE, as a share of that by the ablation: lower is better.
            found[f"contrastive_score_{ablated}"] = 1 - damage
    return found


def _predict(config: ReconstructionStageConfig, inputs: Upstreams) -> Prediction:
    own = config.reconstruction
    known = foresee(own, own.split, inputs)
    if known is None:
        return Prediction()
    tails = image_amounts(config.backbone, inputs["weights"], known.n_images * len(REPLACED))
    if tails is None:
        return Prediction()
    n_bytes = (
        MANIFEST_BYTES + expected_bytes(RECONSTRUCTION, 0, 0) + expected_bytes(FIRING_HISTOGRAM, 0, 0) + 500
    )
    scratch = known.n_parts * (8 * known.n_latents + 16 * known.width + 4_000)
    effort = [*load_amounts(inputs["weights"]), *known.encoding(), *known.decoding(), *tails]
    return Prediction({}, n_bytes, scratch, effort)


STAGE = PartStage(
    name="reconstruction",
    version=3,
    section="evaluations",
    description="Held-out images with an SAE's reconstruction in place.",
    changes={3: "counts images whose classes are all on top, and the KL divergence from the original"},
    prepare=_prepare,
    worker=_Worker,
    merge=_merge,
    predict=_predict,
)
