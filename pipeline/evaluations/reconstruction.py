"""Evaluation `reconstruction`: how faithful an SAE is on held-out images, token by token and through the rest of CLIP.

All tokens are replaced. The contrastive score is the reference's done right (spec 2.8): real class names, all tokens
and not the class token alone, every class once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import torch

from pipeline.ablation import REPLACED, Outcomes, ZeroshotLogits, kept
from pipeline.backbones.base import BackboneConfig
from pipeline.classifier import Prompts, load_classifier
from pipeline.config import Config, OptionalDatasetName, SaeName
from pipeline.evaluations.base import EvaluationConfig
from pipeline.index import split_range
from pipeline.latents import PartImages, decode, encode, images_per_block, labels_of, part_ranges, sae_on
from pipeline.mask_table import wilson_interval
from pipeline.stage import Inputs, Runtime, Stage
from pipeline.training_metrics import DENSE_FREQUENCY, Reconstruction
from pipeline.weights import backbone_on
from storage import parts, tables
from storage.activations import Activations
from storage.artifacts import Builder, Summary
from storage.tables import Column, TableSchema

if TYPE_CHECKING:
    from pipeline.dag import Dag

_MEAN = "mean"
_SUMS = "sums"
_BINS_PER_DECADE = 4
_DECADES = 6

RECONSTRUCTION = TableSchema(
    "reconstruction",
    "Zero-shot classification with every token's activation at the hook replaced.",
    (
        Column(
            "replaced",
            pa.string(),
            "By what: `original` nothing, `reconstruction` the SAE's x_hat, `mean` the mean activation of the split, "
            "`zero` zeros.",
        ),
        Column("n", pa.int64(), "Images."),
        Column("n_correct", pa.int64(), "Images whose largest logit is that of their label."),
        Column("accuracy", pa.float64(), "n_correct / n, from 0 to 1."),
        Column("ci_low", pa.float64(), "Lower end of the accuracy's 95 % Wilson interval."),
        Column("ci_high", pa.float64(), "Upper end of that interval."),
        Column(
            "cross_entropy",
            pa.float64(),
            "Mean over images of -ln softmax of the label's logit, over the names of all classes, in nats.",
        ),
    ),
)
FIRING_HISTOGRAM = TableSchema(
    "firing_histogram",
    "How many latents fire how often.",
    (
        Column(
            "log10_low",
            pa.float64(),
            "Lower end of the bin of log10(tokens above 0 / tokens), inclusive; null: latents that never fire.",
            nullable=True,
        ),
        Column("log10_high", pa.float64(), "Upper end of the bin, exclusive; 0 inclusive.", nullable=True),
        Column("n_latents", pa.int64(), "Latents in the bin."),
    ),
)


class ReconstructionConfig(EvaluationConfig):
    """An SAE on one split of a data set."""

    kind: Literal["reconstruction"] = "reconstruction"
    sae: SaeName
    dataset: OptionalDatasetName = None
    """The SAE's own if not given."""
    split: str = "test"
    prompts: Prompts = Prompts()

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def stage_config(self, dag: Dag) -> ReconstructionStageConfig:
        backbone = dag.experiment.backbones[dag.sae(self.sae).backbone]
        return ReconstructionStageConfig(reconstruction=self, backbone=backbone)

    def inputs(self, dag: Dag) -> dict[str, str]:
        sae = dag.sae(self.sae)
        dataset = self.dataset or sae.dataset
        return {
            "activations": dag.extract(dataset, sae.backbone),
            "images": dag.index(dataset),
            "sae": dag.train(self.sae),
            "weights": dag.weights(sae.backbone),
            "classifier": dag.classifier(dataset, sae.backbone, self.prompts),
        }


class ReconstructionStageConfig(Config):
    """The config with the backbone its SAE stands on, which is not hashed: its weights are an input."""

    reconstruction: ReconstructionConfig
    backbone: BackboneConfig

    def key_config(self) -> dict[str, Any]:
        return self.reconstruction.key_config()


def _write_mean(out: Builder, activations: Activations, rows: range) -> None:
    """The split's mean activation, for the parts to read."""
    total = np.zeros(activations.width)
    for part in part_ranges(activations, rows):
        for first in range(part.start, part.stop, activations.chunk_images):
            images = range(first, min(first + activations.chunk_images, part.stop))
            total += PartImages(activations, images, "cpu").take(images).double().sum(dim=(0, 1)).numpy()
    mean = total / (len(rows) * activations.tokens_per_image)
    parts.write(out, _MEAN, 0, {"mean": mean.astype(np.float32)})


def _run_part(
    config: ReconstructionStageConfig, inputs: Inputs, out: Builder, runtime: Runtime, part: int
) -> None:
    """Sums over one shard's images of the split."""
    device = runtime.device
    activations = Activations(inputs["activations"])
    rows = part_ranges(activations, split_range(inputs["images"], config.reconstruction.split))[part]
    labels = labels_of(inputs["images"])[rows.start : rows.stop]
    sae = sae_on(inputs["sae"], device)
    weights, logit_scale = load_classifier(inputs["classifier"], device)
    logits = ZeroshotLogits(backbone_on(config.backbone, inputs["weights"], device), weights, logit_scale)
    mean = torch.tensor(parts.PartArrays(out, _MEAN, 0)["mean"], device=device)
    quality, outcomes = Reconstruction(sae.width, device), Outcomes()
    n_fired = torch.zeros(sae.n_latents, dtype=torch.int64, device=device)
    l1_norm = 0.0
    images = PartImages(activations, rows, device)
    step = images_per_block(sae.n_latents, activations.tokens_per_image)
    for start in range(0, len(rows), step):
        block = range(rows.start + start, min(rows.start + start + step, rows.stop))
        x = images.take(block)
        latents = encode(sae, x.flatten(0, 1))
        x_hat = decode(latents, sae.W_dec) + sae.b_dec
        quality.add(x.flatten(0, 1), x_hat)
        n_fired += torch.bincount(latents.latent, minlength=sae.n_latents)
        l1_norm += latents.value.sum(dtype=torch.float64).item()
        label = torch.from_numpy(labels[start : start + len(block)]).long().to(device)
        outcomes.add(logits, x, x_hat.view_as(x), mean, label)
    arrays = {
        "quality": quality.sums.cpu().numpy(),
        "n_fired": n_fired.cpu().numpy(),
        "l1_norm": np.array([l1_norm]),
        **vars(outcomes),
    }
    out.ledger.record(part, [parts.write(out, _SUMS, part, arrays)])


def _run(config: ReconstructionStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    activations = Activations(inputs["activations"])
    rows = split_range(inputs["images"], config.reconstruction.split)
    _write_mean(out, activations, rows)
    n_parts = len(part_ranges(activations, rows))
    runtime.map_parts(STAGE, config, inputs, out, runtime, out.ledger.missing(n_parts))
    sae_on.cache_clear()
    backbone_on.cache_clear()

    sums: dict[str, np.ndarray] = {}
    for part in range(n_parts):
        arrays = parts.PartArrays(out, _SUMS, part)
        for name in ("quality", "n_fired", "l1_norm", *vars(Outcomes())):
            sums[name] = sums.get(name, 0) + arrays[name]
    quality = Reconstruction(activations.width)
    quality.sums = torch.from_numpy(sums["quality"])
    n_tokens = quality.n_tokens
    accuracy = dict(zip(REPLACED, (sums["n_correct"] / len(rows)).tolist(), strict=True))
    entropy = dict(zip(REPLACED, (sums["cross_entropy"] / len(rows)).tolist(), strict=True))
    low, high = wilson_interval(sums["n_correct"], np.full(len(REPLACED), len(rows)))
    tables.write(
        out,
        RECONSTRUCTION,
        {
            "replaced": REPLACED,
            "n": [len(rows)] * len(REPLACED),
            "n_correct": sums["n_correct"],
            "accuracy": list(accuracy.values()),
            "ci_low": low,
            "ci_high": high,
            "cross_entropy": list(entropy.values()),
        },
    )
    tables.write(out, FIRING_HISTOGRAM, firing_histogram(sums["n_fired"], n_tokens))
    found: Summary = {
        "fvu": quality.fvu,
        "explained_variance": quality.explained_variance,
        "mse": quality.mse,
        "mse_per_norm": quality.mse_per_norm,
        "cosine": quality.cosine,
        "l0": float(sums["n_fired"].sum()) / n_tokens,
        "l1_norm": float(sums["l1_norm"][0]) / n_tokens,
        "n_latents": len(sums["n_fired"]),
        "dead_fraction": float((sums["n_fired"] == 0).mean()),
        "dense_fraction": float((sums["n_fired"] > DENSE_FREQUENCY * n_tokens).mean()),
        "n_images": len(rows),
        **{f"accuracy_{way}": value for way, value in accuracy.items()},
    }
    for ablated in ("mean", "zero"):
        ways = ("reconstruction", "original", ablated)
        share = kept(*(accuracy[way] for way in ways))
        damage = kept(*(entropy[way] for way in ways))
        if share is not None:
            found[f"zero_shot_kept_{ablated}"] = share
        if damage is not None:
            # Of the damage the ablation does, what the SAE does: lower is better.
            found[f"contrastive_score_{ablated}"] = 1 - damage
    return found


def firing_histogram(n_fired: np.ndarray, n_tokens: int) -> dict[str, list[float | int | None]]:
    """Columns of the table of that name, from how many tokens each latent fired on."""
    edges = np.linspace(-_DECADES, 0, _DECADES * _BINS_PER_DECADE + 1)
    fired = n_fired[n_fired > 0]
    where = np.clip(np.searchsorted(edges, np.log10(fired / n_tokens), side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(where, minlength=len(edges) - 1)
    return {
        "log10_low": [None, *edges[:-1].tolist()],
        "log10_high": [None, *edges[1:].tolist()],
        "n_latents": [int((n_fired == 0).sum()), *counts.tolist()],
    }


STAGE = Stage("reconstruction", 1, _run, _run_part)
