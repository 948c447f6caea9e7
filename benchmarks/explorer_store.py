"""A store of any size to explore, written directly: `benchmarks.explorer` measures the server on it.

It has the tables of an index and of statistics in full. Of the activations it has one shard, and of the pictures those
of that shard: the first latents have their top images there. The other latents have theirs anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from benchmarks.synthetic import random_sae
from patchsae.pipeline.evaluations.statistics.tables import (
    CLASS_LATENTS,
    LATENT_IMAGES,
    TableSettings,
    latents_schema,
)
from patchsae.pipeline.images.tables import CLASSES, IMAGES
from patchsae.pipeline.saes.sae import save_sae
from patchsae.storage.activations import ActivationTemplate, ActivationWriter
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.keys import artifact_key
from patchsae.storage.manifest import Summary
from patchsae.storage.records import ExperimentRecord, RecordedNode
from patchsae.storage.store import Store
from patchsae.storage.tokens import TokenLayout

WIDTH, LAYOUT = 768, TokenLayout(1, (14, 14))
_CLASSES_AT_ONCE = 16_000_000


@dataclass(frozen=True)
class Size:
    """`classes_per_latent` is the mean number of classes with an image that fires a latent."""

    n_latents: int = 49_152
    n_images: int = 1_281_167
    n_classes: int = 1000
    k: int = 20
    classes_per_latent: int = 150
    n_shown: int = 20
    """How many latents have their top images among the images whose activations and pictures are there."""


def write(folder: Path, size: Size) -> tuple[Store, str]:
    """The store, and the id of its view."""
    store = Store(folder / "store")
    random = np.random.default_rng(0)
    labels = random.integers(0, size.n_classes, size.n_images).astype(np.int32)
    template = ActivationTemplate.plan(size.n_images, LAYOUT.n_tokens, WIDTH, "float16")
    n_near = len(template.shard_range(0))
    _write_pictures(folder / "pictures", n_near)
    images = _commit(
        store,
        "index",
        {"kind": "image_folder"},
        {"source": "0" * 64},
        lambda out: _write_index(out, labels, size),
        {"n_images": size.n_images, "n_classes": size.n_classes, "splits": f"train {size.n_images}"},
    )
    weights = _commit(store, "weights", {"kind": "open_clip"}, {}, lambda out: None, {"width": WIDTH})
    activations = _commit(
        store,
        "extract",
        {"kind": "open_clip"},
        {"images": images.identity, "weights": weights.identity},
        lambda out: _write_shard(out, template),
        {"n_images": size.n_images, "tokens_per_image": LAYOUT.n_tokens, "width": WIDTH},
    )
    inputs = {"activations": activations.identity, "images": images.identity}
    sae = _commit(
        store,
        "train",
        {"kind": "topk", "k": 32},
        inputs,
        lambda out: save_sae(out, random_sae(WIDTH, size.n_latents), {}),
        {"n_latents": size.n_latents},
    )
    statistics = _commit(
        store,
        "statistics",
        {"split": "train", "tau": 0.2, "tokens": "all"},
        {**inputs, "sae": sae.identity},
        lambda out: _write_statistics(out, labels, n_near, size),
        {"n_images": size.n_images, "n_latents": size.n_latents},
    )
    _record(store, folder / "pictures", {a.stage: a for a in (images, weights, activations, sae, statistics)})
    return store, statistics.key[:16]


def _commit(
    store: Store,
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    fill: Callable[[Builder], object],
    summary: Summary,
) -> Artifact:
    builder = store.begin(store.at(stage, artifact_key(stage, 1, config, inputs)))
    fill(builder)
    return store.commit(builder, 1, config, inputs, summary, {"started": 0.0})


def _record(store: Store, pictures: Path, made: Mapping[str, Artifact]) -> None:
    names = {"dataset": "images", "backbone": "clip", "sae": "sae", "evaluation": "statistics"}
    about = {
        "index": ("images", ("dataset",)),
        "weights": ("clip", ("backbone",)),
        "extract": ("images-clip", ("dataset", "backbone")),
        "train": ("sae", ("dataset", "backbone", "sae")),
        "statistics": ("statistics", tuple(names)),
    }
    nodes = {
        f"{stage}/{name}": RecordedNode(stage, made[stage].key, {of: names[of] for of in known})
        for stage, (name, known) in about.items()
    }
    backbone = {
        "kind": "open_clip",
        "model": "ViT-B-16",
        "pretrained": None,
        "checkpoint": "weights.safetensors",
    }
    experiment = {
        "name": "synthetic",
        "datasets": {"images": {"kind": "image_folder", "root": str(pictures)}},
        "backbones": {"clip": backbone},
        "saes": {"sae": {"kind": "topk", "dataset": "images", "backbone": "clip"}},
        "evaluations": {"statistics": {"kind": "statistics", "sae": "sae"}},
    }
    store.records.write("synthetic", ExperimentRecord(nodes, experiment), newest=True)


def _source(row: int) -> str:
    return f"{row // 1000:05d}/image_{row:08d}.jpg"


def _write_pictures(folder: Path, n: int) -> None:
    random = np.random.default_rng(1)
    for row in range(n):
        path = folder / _source(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=85)


def _write_index(out: Builder, labels: np.ndarray, size: Size) -> None:
    n = size.n_images
    names = pa.array([f"class {label}" for label in range(size.n_classes)])
    # Digests of the pictures are not compared by what is measured, but they are as long and as random.
    digests = np.random.default_rng(2).bytes(32 * n).hex()
    out.write_table(
        IMAGES,
        {
            "image": np.arange(n),
            "source": [_source(row) for row in range(n)],
            "label": labels,
            "class_name": names.take(pa.array(labels)),
            "split": pa.array(["train"]).take(pa.array(np.zeros(n, np.int32))),
            "width": np.full(n, 500, np.int32),
            "height": np.full(n, 375, np.int32),
            "digest": [digests[64 * row : 64 * row + 64] for row in range(n)],
            "treatment": pa.array([""]).take(pa.array(np.zeros(n, np.int32))),
        },
    )
    counts = np.bincount(labels, minlength=size.n_classes)
    out.write_table(CLASSES, {"class": np.arange(size.n_classes), "class_name": names, "n_images": counts})


def _write_shard(out: Builder, template: ActivationTemplate) -> None:
    writer = ActivationWriter(out, template, LAYOUT, {})
    shape = (len(template.shard_range(0)), template.tokens_per_image, template.width)
    values = np.random.default_rng(3).standard_normal(shape, np.float32).astype(np.float16)
    out.ledger.record(0, [writer.write(0, values)])


def _write_statistics(out: Builder, labels: np.ndarray, n_near: int, size: Size) -> None:
    random = np.random.default_rng(4)
    n, k = size.n_latents, size.k
    latent = np.repeat(np.arange(n, dtype=np.int32), k)
    image = random.integers(0, size.n_images, n * k)
    near = min(size.n_shown, n) * k
    image[:near] = random.integers(0, n_near, near)
    activation = np.sort(random.lognormal(-1, 1, (n, k)).astype(np.float32), axis=1)[:, ::-1].ravel()
    out.write_table(
        LATENT_IMAGES,
        {
            "latent": latent,
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), n),
            "image": image,
            "activation": activation,
            "token": random.integers(0, LAYOUT.n_tokens, n * k).astype(np.int32),
            "label": labels[image],
            "token_activation": activation * 5,
        },
    )
    n_firing = _write_class_latents(out, size, random)
    settings = TableSettings()
    schema = latents_schema(settings.quantiles)
    columns = {column.name: random.lognormal(-3, 2, n) for column in schema.columns}
    columns |= {
        "latent": np.arange(n, dtype=np.int32),
        "frequency": np.minimum(random.lognormal(-5, 2, n), 1.0),
        "dead": random.random(n) < 0.05,
        "dense": random.random(n) < 0.01,
        "n_classes": n_firing.astype(np.int32),
        "label_entropy_k": np.full(n, k, np.int32),
        "label_entropy": random.uniform(0, math.log(k), n),
        **{name: random.integers(0, 10**6, n) for name in ("n_images", "n_tokens", "n_tokens_above")},
    }
    out.write_table(schema, columns)


def _write_class_latents(out: Builder, size: Size, random: np.random.Generator) -> np.ndarray:
    """Writes the table in the parts in which the stage writes it; the number of classes of each latent."""
    share = np.minimum(random.exponential(size.classes_per_latent / size.n_classes, size.n_latents), 1.0)
    n_firing = np.zeros(size.n_latents, np.int64)
    step = max(1, _CLASSES_AT_ONCE // size.n_latents)
    starts = range(0, size.n_classes, step)
    for part, start in enumerate(starts):
        classes = np.arange(start, min(start + step, size.n_classes))
        label, latent = np.nonzero(random.random((len(classes), size.n_latents), np.float32) < share)
        n_firing += np.bincount(latent, minlength=size.n_latents)
        out.write_table(
            CLASS_LATENTS,
            {
                "class": (label + start).astype(np.int32),
                "latent": latent.astype(np.int32),
                "n_tokens": random.geometric(0.01, len(latent)),
                "n_images": random.geometric(0.05, len(latent)),
                "mean_activation": random.lognormal(-2, 1, len(latent)).astype(np.float32),
            },
            part=part if len(starts) > 1 else None,
        )
    return n_firing
