"""Small committed artifacts to evaluate an SAE on: an index, activations, a trained SAE."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.config import Config
from pipeline.index import CLASSES, IMAGES
from pipeline.saes.base import Sae, save_sae
from pipeline.stage import Runtime, Stage
from storage import tables
from storage.activations import ActivationTemplate, ActivationWriter
from storage.artifacts import Artifact, Builder, Store
from storage.keys import digest_bytes, digest_json


def commit(store: Store, stage: str, fill: Any, **config: Any) -> Artifact:
    """An artifact whose content `fill(builder)` writes."""
    key = digest_json({"stage": stage, "version": 1, "config": config, "inputs": {}})
    builder = store.begin(store.at(stage, key))
    fill(builder)
    return store.commit(builder, 1, config, {}, {}, {})


def run(
    store: Store, stage: Stage, config: Config, inputs: dict[str, Artifact], runtime: Runtime | None = None
) -> Artifact:
    """Runs a stage and commits what it made."""
    key_inputs = {role: artifact.identity for role, artifact in inputs.items()}
    key = digest_json(
        {
            "stage": stage.name,
            "version": stage.version,
            "config": stage.key_config(config),
            "inputs": key_inputs,
        }
    )
    builder = store.begin(store.at(stage.name, key))
    summary = stage.run(config, inputs, builder, runtime or Runtime())
    return store.commit(builder, stage.version, stage.key_config(config), key_inputs, summary, {})


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
            "digest": [f"{i:064x}" for i in range(n)],
        }
        tables.write(out, IMAGES, values)
        counts = np.bincount(labels, minlength=len(class_names))
        tables.write(
            out, CLASSES, {"class": range(len(class_names)), "class_name": class_names, "n_images": counts}
        )

    return commit(store, "index", fill, labels=[int(label) for label in labels], splits=list(splits))


def activations(
    store: Store, values: np.ndarray, chunk_images: int, chunks_per_shard: int, n_prefix_tokens: int = 1
) -> Artifact:
    """`values` float16 [images, tokens, channels]."""

    def fill(out: Builder) -> None:
        template = ActivationTemplate(*values.shape, "float16", chunk_images, chunks_per_shard)
        writer = ActivationWriter(out.path, template, {"n_prefix_tokens": n_prefix_tokens})
        for shard in range(template.n_shards):
            rows = template.shard_range(shard)
            out.ledger.record(shard, [writer.write(rows.start, values[rows.start : rows.stop])])
        out.add(writer.metadata_file())

    return commit(store, "extract", fill, shape=list(values.shape), shard=chunk_images * chunks_per_shard)


def train(store: Store, sae: Sae) -> Artifact:
    digest = digest_bytes(sae.b_enc.numpy().tobytes())
    return commit(store, "train", lambda out: save_sae(out, sae, {}), n_latents=sae.n_latents, bias=digest)


@dataclass(frozen=True)
class SmallWorld:
    """Random activations with an SAE that has dead, rare and frequent latents, and dense float32 latents."""

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

        x = randn(len(labels), n_tokens, d).half()
        bias = torch.linspace(-7.0, 0.5, n_latents)
        bias[3] = -100.0
        sae = Sae(randn(d, n_latents), bias, randn(n_latents, d), 0.1 * randn(d))
        with torch.inference_mode():
            f = sae.encode(x.float().flatten(0, 1)).unflatten(0, x.shape[:2])
        return cls(np.array(labels), list(splits), list(class_names), x.numpy(), sae, f.numpy())

    def inputs(self, store: Store, chunk_images: int = 2, chunks_per_shard: int = 2) -> dict[str, Artifact]:
        return {
            "activations": activations(store, self.x, chunk_images, chunks_per_shard),
            "images": index(store, self.labels.tolist(), self.splits, self.class_names),
            "sae": train(store, self.sae),
        }
