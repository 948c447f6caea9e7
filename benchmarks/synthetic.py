"""A store with random activations and a random, realistically sparse SAE, for benchmarks of the evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save, save_file

from patchsae.pipeline.backbones import weights
from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.backbones.models.shapes_clip import ShapesClipConfig
from patchsae.pipeline.classification import classifier
from patchsae.pipeline.core.stage import Runtime, Stage
from patchsae.pipeline.evaluations.kinds import statistics
from patchsae.pipeline.images.tables import CLASSES, IMAGES
from patchsae.pipeline.saes.sae import Sae, save_sae
from patchsae.storage.activations import ActivationTemplate, ActivationWriter
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.keys import artifact_key
from patchsae.storage.manifest import Summary
from patchsae.storage.store import Store

L0 = 150


def random_sae(width: int, n_latents: int, l0: float = L0) -> Sae:
    """An SAE that has `l0` latents above 0 on a token of standard normal numbers.

    How often a latent fires is spread over orders of magnitude, as in trained SAEs: biases are normal numbers,
    shifted until the frequencies Phi(b_s) add up to `l0`.
    """
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(width, n_latents, generator=generator) / math.sqrt(width)
    W_dec = torch.nn.functional.normalize(torch.randn(n_latents, width, generator=generator), dim=1)
    spread = 0.8 * torch.randn(n_latents, generator=generator)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if torch.special.ndtr((spread + middle).double()).sum() > l0:
            high = middle
        else:
            low = middle
    return Sae(W_enc, spread + low, W_dec, torch.zeros(width))


@dataclass(frozen=True)
class World:
    """What `statistics` and `masking` read, by role, and the backbone's config."""

    store: Store
    inputs: dict[str, Artifact]
    backbone: BackboneConfig

    def run(self, stage: Stage, config: object, runtime: Runtime) -> Artifact:
        """Runs a stage on the inputs and commits it under a made-up key."""
        key = artifact_key(stage.name, stage.version, {}, {})
        builder = self.store.begin(self.store.at(stage.name, key))
        summary = stage.build_one(config, self.inputs, builder, runtime)
        return self.store.commit(builder, stage.version, {}, {}, summary, {})


def _commit(
    store: Store, stage: str, fill: Callable[[Builder], object], summary: Summary | None = None
) -> Artifact:
    builder = store.begin(store.at(stage, artifact_key(stage, 1, {}, {})))
    fill(builder)
    return store.commit(builder, 1, {}, {}, summary or {}, {})


def _write_index(out: Builder, labels: np.ndarray, n_train: int, n_classes: int) -> None:
    n = len(labels)
    names = [f"class {label}" for label in range(n_classes)]
    out.write_table(
        IMAGES,
        {
            "image": range(n),
            "source": [str(i) for i in range(n)],
            "label": labels,
            "class_name": [names[label] for label in labels],
            "split": ["train" if i < n_train else "test" for i in range(n)],
            "width": [224] * n,
            "height": [224] * n,
            "digest": [str(i) for i in range(n)],
            "treatment": [""] * n,
        },
    )
    counts = np.bincount(labels, minlength=n_classes)
    out.write_table(CLASSES, {"class": range(n_classes), "class_name": names, "n_images": counts})


def write_activations(store: Store, backbone: Backbone, n_images: int, noise: float = 0.0) -> Artifact:
    """Activations of standard normal numbers, the same in every store but for `noise` times other ones."""
    return _commit(store, "extract", lambda out: _write_activations(out, backbone, n_images, noise))


def _write_activations(out: Builder, backbone: Backbone, n_images: int, noise: float) -> None:
    shape = (n_images, backbone.layout.n_tokens, backbone.width)
    template = ActivationTemplate.plan(*shape, "float16")
    writer = ActivationWriter(out, template, backbone.layout, {})
    for shard in range(template.n_shards):
        rows = template.shard_range(shard)
        rng = np.random.default_rng(shard)
        values = rng.standard_normal((len(rows), *shape[1:]), np.float32)
        if noise:
            values += noise * rng.standard_normal(values.shape, np.float32)
        values = values.astype(np.float16)
        out.ledger.record(shard, [writer.write(rows.start, values)])


def _backbone(folder: Path, model: str) -> BackboneConfig:
    if model == "shapes_clip":
        return ShapesClipConfig()
    path = folder / "weights.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        state = open_clip.create_model(model).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return OpenClipConfig(model=model, checkpoint=str(path))


def build(folder: Path, model: str, n_latents: int, n_train: int, n_test: int, n_classes: int) -> World:
    """Everything but the statistics. `model`: an open_clip architecture (random weights), or `shapes_clip`."""
    store = Store(folder / "store")
    config = _backbone(folder, model)
    backbone = config.build({})
    labels = np.arange(n_train + n_test) % n_classes
    embedding = torch.randn(n_classes, backbone.tail(_one_image(backbone)).shape[1])
    tensors = {
        "weights": torch.nn.functional.normalize(embedding, dim=1),
        "logit_scale": torch.tensor(backbone.logit_scale),
    }
    identity = weights.identities_of(backbone)[0]

    def fill_weights(out: Builder) -> None:
        out.identity = identity

    images = _commit(store, "index", lambda out: _write_index(out, labels, n_train, n_classes))
    inputs = {
        "images": images,
        "selection_images": images,
        "activations": write_activations(store, backbone, n_train + n_test),
        "sae": _commit(
            store,
            "train",
            lambda out: save_sae(out, random_sae(backbone.width, n_latents), {}),
            {"n_latents": n_latents},
        ),
        "weights": _commit(store, "weights", fill_weights),
        "classifier": _commit(store, "classifier", lambda out: out.write(classifier.FILE, save(tensors))),
    }
    return World(store, inputs, config)


def _one_image(backbone: Backbone) -> torch.Tensor:
    return torch.zeros(1, backbone.layout.n_tokens, backbone.width)


def reopen(folder: Path, model: str) -> World:
    """What `build` left in `folder`, and the statistics if they are there, for another process."""
    store = Store(folder / "store")
    stages = {
        "images": "index",
        "selection_images": "index",
        "activations": "extract",
        "sae": "train",
        "weights": "weights",
        "classifier": "classifier",
    }
    inputs = {role: store.at(stage, artifact_key(stage, 1, {}, {})) for role, stage in stages.items()}
    ran = statistics.STAGE
    inputs["statistics"] = store.at(ran.name, artifact_key(ran.name, ran.version, {}, {}))
    return World(store, inputs, _backbone(folder, model))
