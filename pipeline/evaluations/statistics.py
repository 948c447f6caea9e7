"""Evaluation `statistics`: what every latent responds to, from one pass over the cached activations.

The config of this evaluation and its stage; formulas are in `latent_tables`, counting in `latent_counts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import polars as pl
import torch
from pydantic import Field

from pipeline.config import OptionalDatasetName, SaeName
from pipeline.evaluations.base import EvaluationConfig
from pipeline.index import split_range
from pipeline.latent_counts import PartCounts
from pipeline.latent_merge import COUNTS, merge_sums, merge_top, write_class_latents
from pipeline.latent_tables import LATENT_IMAGES, latent_columns, latent_images_columns, latents_schema
from pipeline.latents import PartImages, encode, images_per_block, labels_of, part_ranges, sae_on
from pipeline.saes.base import load_sae
from pipeline.stage import Inputs, Runtime, Stage
from storage import parts, tables
from storage.activations import Activations
from storage.artifacts import Artifact, Builder, Summary

if TYPE_CHECKING:
    from pipeline.dag import Dag


class StatisticsConfig(EvaluationConfig):
    """Per-latent statistics of an SAE on one split."""

    kind: Literal["statistics"] = "statistics"
    sae: SaeName
    dataset: OptionalDatasetName = None
    """The images to look at; the SAE's own training dataset if not given."""
    split: str = "train"
    tokens: Literal["all", "patches"] = "all"
    """Whether prefix tokens (CLS) count."""
    tau: Annotated[float, Field(ge=0)] = 0.2
    """A token counts towards a class where the latent's activation exceeds this."""
    k_images: Annotated[int, Field(ge=1)] = 20
    """Reference images kept per latent."""
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.1, 0.5, 0.9, 0.99)
    """Of the activation over the tokens on which a latent fires; each becomes a column."""
    dense_above: Annotated[float, Field(gt=0, le=1)] = 0.1
    """A latent that fires on a larger share of tokens is called dense."""
    convention: Literal["corrected", "paper"] = "corrected"
    """`paper` gives the reference implementation's numbers where they differ: NaN for dead latents, and its label
    entropy (spec 3; the columns of `latents` say how). Two of its defects stay mended: unfilled reference slots
    are absent instead of showing image 0 (spec B15), and classes that share a name are counted apart (B7)."""

    @classmethod
    def stage(cls) -> Stage:
        return STAGE

    def dataset_name(self, dag: Dag) -> str:
        return self.dataset or dag.sae(self.sae).dataset

    def inputs(self, dag: Dag) -> dict[str, str]:
        dataset = self.dataset_name(dag)
        return {
            "activations": dag.extract(dataset, dag.sae(self.sae).backbone),
            "images": dag.index(dataset),
            "sae": dag.train(self.sae),
        }


def _tokens_per_image(config: StatisticsConfig, activations: Activations) -> tuple[int, int]:
    """First token that counts, and how many do."""
    first = activations.n_prefix_tokens if config.tokens == "patches" else 0
    return first, activations.tokens_per_image - first


def _run_part(config: StatisticsConfig, inputs: Inputs, out: Builder, runtime: Runtime, part: int) -> None:
    """Counts one shard's images of the split, class by class."""
    activations = Activations(inputs["activations"])
    rows = part_ranges(activations, split_range(inputs["images"], config.split))[part]
    labels = labels_of(inputs["images"])[rows.start : rows.stop]
    sae = sae_on(inputs["sae"], runtime.device)
    first, tokens_per_image = _tokens_per_image(config, activations)
    images = PartImages(activations, rows, runtime.device, first)
    counts = PartCounts(sae.n_latents, config.k_images)
    order = np.argsort(labels, kind="stable")
    step = images_per_block(sae.n_latents, tokens_per_image)
    for start in range(0, len(order), step):
        chosen = order[start : start + step]
        x = images.take(chosen + rows.start)
        latents = encode(sae, x.flatten(0, 1))
        counts.add(latents, chosen + rows.start, labels[chosen], config.tau, first)
    out.ledger.record(part, [parts.write(out, COUNTS, part, counts.arrays())])


def _run(config: StatisticsConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    activations = Activations(inputs["activations"])
    rows = split_range(inputs["images"], config.split)
    n_parts = len(part_ranges(activations, rows))
    runtime.map_parts(STAGE, config, inputs, out, runtime, out.ledger.missing(n_parts))

    sae = load_sae(inputs["sae"])
    sae_on.cache_clear()
    n_classes = tables.of(inputs["images"], "classes").select(pl.len()).collect().item()
    _, tokens_per_image = _tokens_per_image(config, activations)
    with runtime.reporter.bar("statistics, tables", 3 * n_parts, "parts") as bar:
        sums, histogram = merge_sums(out, n_parts, sae.n_latents)
        bar.advance(n_parts)
        best = merge_top(out, n_parts, sae.n_latents, config.k_images)
        bar.advance(n_parts)
        n_firing_classes = write_class_latents(out, n_parts, sae.n_latents, n_classes)
        bar.advance(n_parts)
    columns = latent_columns(
        sums,
        histogram,
        best,
        n_firing_classes,
        torch.linalg.vector_norm(sae.W_dec.double(), dim=1).numpy(),
        len(rows),
        tokens_per_image,
        config,
    )
    tables.write(out, latents_schema(config.quantiles), columns)
    tables.write(out, LATENT_IMAGES, latent_images_columns(best))
    n_dead = int((sums.n_images == 0).sum())
    return {
        "n_images": len(rows),
        "n_latents": sae.n_latents,
        "l0": float(sums.n_tokens.sum() / (len(rows) * tokens_per_image)),
        "dead_fraction": n_dead / sae.n_latents,
        "dense_fraction": float(np.mean(columns["dense"])),
    }


def _predict_bytes(config: StatisticsConfig, inputs: Mapping[str, Artifact | None]) -> int | None:
    """The scratch of the parts, freed at the end, which is most of it: about one byte per image and latent at
    the paper's sparsity (50 KB per image at 49,152 latents). None until the SAE is trained."""
    images, sae = inputs["images"], inputs["sae"]
    if images is None or sae is None:
        return None
    return int(images.manifest.summary["n_images"] or 0) * int(sae.manifest.summary["n_latents"] or 0)


STAGE = Stage("statistics", 1, _run, _run_part, predict_bytes=_predict_bytes)
