"""Small committed artifacts to evaluate an SAE on: an index, activations, a trained SAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.stage import Runtime, Stage
from patchsae.pipeline.images.tables import CLASSES, IMAGES
from patchsae.pipeline.saes.sae import Sae, save_sae
from patchsae.storage.activations import ActivationTemplate, ActivationWriter
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.keys import artifact_key, digest_bytes
from patchsae.storage.manifest import Summary
from patchsae.storage.store import Store
from patchsae.storage.tokens import TokenLayout


def commit(store: Store, stage: str, fill: Any, summary: Summary | None = None, **config: Any) -> Artifact:
    """An artifact whose content `fill(builder)` writes."""
    builder = store.begin(store.at(stage, artifact_key(stage, 1, config, {})))
    fill(builder)
    return store.commit(builder, 1, config, {}, summary or {}, {})


def run(
    store: Store, stage: Stage, config: Config, inputs: dict[str, Artifact], runtime: Runtime | None = None
) -> Artifact:
    """Runs a stage and commits what it made."""
    key_inputs = {role: artifact.identity for role, artifact in inputs.items()}
    key = artifact_key(stage.name, stage.version, config.key_config(), key_inputs)
    builder = store.begin(store.at(stage.name, key))
    summary = stage.build_one(config, inputs, builder, runtime or Runtime())
    return store.commit(builder, stage.version, config.key_config(), key_inputs, summary, {})


def index(store: Store, labels: Sequence[int], splits: Sequence[str], class_names: Sequence[str]) -> Artifact:
    def fill(out: Builder) -> None:
        n = len(labels)
        values = {
            "image": range(n),
            "source": [f"{i}.png" for i in range(n)],
            "label": labels,
            "class_name": [class_names[label] for label in labels],
            "split": splits,
            "width": [32] * n,
            "height": [32] * n,
            "treatment": [""] * n,
            "digest": [f"{i:064x}" for i in range(n)],
        }
        out.write_table(IMAGES, values)
        counts = np.bincount(labels, minlength=len(class_names))
        out.write_table(
            CLASSES, {"class": range(len(class_names)), "class_name": class_names, "n_images": counts}
        )

    told = ", ".join(f"{split} {splits.count(split)}" for split in dict.fromkeys(splits))
    summary: Summary = {"n_images": len(labels), "splits": told}
    return commit(store, "index", fill, summary, labels=[int(label) for label in labels], splits=list(splits))


def activations(
    store: Store,
    values: np.ndarray,
    chunk_images: int,
    chunks_per_shard: int,
    n_prefix: int = 1,
    n_suffix: int = 0,
) -> Artifact:
    """`values` float16 [images, tokens, channels]; the patches stand in one row."""
    layout = TokenLayout(n_prefix, (1, values.shape[1] - n_prefix - n_suffix), n_suffix)

    def fill(out: Builder) -> None:
        n_images, n_tokens, width = values.shape
        template = ActivationTemplate(n_images, n_tokens, width, "float16", chunk_images, chunks_per_shard)
        writer = ActivationWriter(out, template, layout, {})
        for shard in range(template.n_shards):
            rows = template.shard_range(shard)
            out.ledger.record(shard, [writer.write(rows.start, values[rows.start : rows.stop])])

    shard = chunk_images * chunks_per_shard
    return commit(store, "extract", fill, shape=list(values.shape), shard=shard, layout=layout.attributes())


def train(store: Store, sae: Sae) -> Artifact:
    digest = digest_bytes(sae.b_enc.numpy().tobytes())
    summary: Summary = {"n_latents": sae.n_latents, "width": sae.width}
    return commit(
        store,
        "train",
        lambda out: save_sae(out, sae, {}),
        summary,
        n_latents=sae.n_latents,
        bias=digest,
    )


def on_grid(x: torch.Tensor, steps_per_unit: int) -> torch.Tensor:
    """Numbers rounded to a grid coarse enough that float32 sums of their products are exact, in any order."""
    return (x * steps_per_unit).round() / steps_per_unit


@dataclass(frozen=True)
class SmallWorld:
    """Random activations with an SAE that has dead, rare and frequent latents, and dense float32 latents.

    Everything is on a grid, so that latents are the same numbers however they are computed.
    """

    labels: np.ndarray  # [N]
    splits: list[str]
    class_names: list[str]
    x: np.ndarray  # [N, T, d] float16
    sae: Sae
    f: np.ndarray  # [N, T, S] float32

    @classmethod
    def make(cls, labels: Sequence[int], splits: Sequence[str], class_names: Sequence[str]) -> SmallWorld:
        generator = torch.Generator().manual_seed(3)
        n_tokens, d, n_latents = 5, 8, 24

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        x = on_grid(randn(len(labels), n_tokens, d), 128).half()
        bias = on_grid(torch.linspace(-7.0, 0.5, n_latents), 128)
        bias[3] = -100.0
        W_enc, b_dec = on_grid(randn(d, n_latents), 128), on_grid(0.1 * randn(d), 128)
        sae = Sae(W_enc, bias, randn(n_latents, d), b_dec)
        with torch.inference_mode():
            f = sae.encode(x.float().flatten(0, 1)).unflatten(0, x.shape[:2])
        return cls(np.array(labels), list(splits), list(class_names), x.numpy(), sae, f.numpy())

    def inputs(self, store: Store, chunk_images: int = 2, chunks_per_shard: int = 2) -> dict[str, Artifact]:
        return {
            "activations": activations(store, self.x, chunk_images, chunks_per_shard),
            "images": index(store, self.labels.tolist(), self.splits, self.class_names),
            "sae": train(store, self.sae),
        }
