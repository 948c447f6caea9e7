"""Stage `adapt`: trains an adapter on the drawn images of a dataset, or reads one that was published.

This module owns the loop over steps and its checkpoints. The recipe (`pipeline.adapters.recipe`) owns the order of
the images and the learning rates, and each method (`pipeline.adapters.methods`) its parameters and its loss. A step
depends only on the config, the data and the step's number, so training that is stopped anywhere and continued from
a checkpoint ends in the same bytes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import normalize

from patchsae.pipeline.adapters.adapter import Adapter, AdapterConfig, Batch, Task, unit_features
from patchsae.pipeline.adapters.features import load_features
from patchsae.pipeline.adapters.recipe import Recipe, optimiser_state, restore_optimiser
from patchsae.pipeline.adapters.views import View, Views
from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig
from patchsae.pipeline.backbones.checkpoints.read import file_fingerprint
from patchsae.pipeline.backbones.effort import image_amounts, load_amounts, text_amounts
from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.classification.classifier import load_classifier
from patchsae.pipeline.core.config import INLINE, Config, Unhashed
from patchsae.pipeline.core.interrupts import deferred_signals
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Source, Upstreams
from patchsae.pipeline.core.prefetch import prefetch
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
from patchsae.pipeline.core.tensors import read_tensors
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.few_shot import rows_of_draw
from patchsae.pipeline.images.indexed import indexed_images, loader_of
from patchsae.pipeline.images.tables import class_names_of, expected_classes, labels_of
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary
from patchsae.storage.tables import Column, TableSchema, expected_bytes

FILE = "adapter.safetensors"
_ROWS = 200
_BYTES_PER_ROW = 30
# A backward pass through the blocks takes about twice the time of a forward pass.
_PASSES = 3

ADAPTER_TRAINING = TableSchema(
    "adapter_training",
    "The training curve of an adapter: at most about 200 rows, evenly spaced over its steps.",
    (
        Column("step", pa.int64(), "Number of steps that were taken."),
        Column("epoch", pa.int32(), "Epoch of the last of them, counted from 0."),
        Column("loss", pa.float64(), "Mean loss of the steps since the last row."),
        Column("learning_rate", pa.float64(), "Learning rate of the last of them."),
    ),
)


class AdaptStageConfig(Config):
    """The config of the stage: that of the adapter, and what its names lead to."""

    adapter: Annotated[AdapterConfig, INLINE]
    dataset: Annotated[DatasetConfig | None, Unhashed("its images are an input")]
    backbone: Annotated[BackboneConfig, Unhashed("its weights are an input; training has no hook")]
    templates: tuple[str, ...]

    @property
    def is_read(self) -> bool:
        """Whether the adapter is read from a file, in place of being trained."""
        return self.adapter.weights_file() is not None


def load_adapter(artifact: Artifact) -> dict[str, Tensor]:
    """What an adapter learnt, by name. Raises UserError if that cannot be read."""
    return read_tensors(artifact, FILE)


@dataclass
class _Training:
    """An adapter in training: everything that its next step depends on."""

    adapter: Adapter
    recipe: Recipe
    out: Builder
    step: int = 0
    rows: list[tuple[int, int, float, float]] = field(default_factory=list)
    _loss: float = 0.0
    _n_losses: int = 0

    def __post_init__(self) -> None:
        self.optimiser = self.recipe.optimiser(self.adapter.parameters)
        self._per_row = max(1, self.recipe.n_steps // _ROWS)

    def take_step(self, batch: Batch, device: str) -> float:
        """Takes a step and returns its loss. Raises UserError if that is not finite."""
        config, seed = self.recipe.config, self.recipe.config.seed
        # What a method draws in a step, such as dropout, depends on the seed and on the step alone.
        on_gpu = device.startswith("cuda")
        with torch.random.fork_rng(devices=[device] if on_gpu else []), torch.enable_grad():
            torch.manual_seed((seed << 32) + self.step)
            with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=config.precision == "bfloat16"):
                loss = self.adapter.loss(batch)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(
                f"the loss is {value} in step {self.step + 1:,}; give the adapter a smaller `lr` than {config.lr:g}."
            )
        rate = self.recipe.learning_rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        epoch = self.recipe.epoch_of(self.step)
        if self.recipe.ends_epoch(self.step):
            self.adapter.end_epoch(epoch, self.recipe.n_epochs)
        self._loss, self._n_losses = self._loss + value, self._n_losses + 1
        self.step += 1
        if self.step % self._per_row == 0 or self.step == self.recipe.n_steps:
            self.rows.append((self.step, epoch, self._loss / self._n_losses, rate))
            self._loss, self._n_losses = 0.0, 0
        return value

    def save(self) -> None:
        groups = {
            "parameter": self.adapter.parameters,
            "optimiser": optimiser_state(self.optimiser),
            "state": self.adapter.state(),
        }
        arrays = {
            f"{group}/{n}": t.detach().cpu().numpy() for group, of in groups.items() for n, t in of.items()
        }
        arrays["rows"] = np.array(self.rows, np.float64).reshape(-1, 4)
        self.out.checkpoints.save(self.step, arrays, {"loss": self._loss, "n_losses": self._n_losses})

    def restore(self) -> None:
        found = self.out.checkpoints.latest()
        if found is None:
            return
        groups: dict[str, dict[str, Tensor]] = {}
        for key, array in found.arrays.items():
            group, _, name = key.partition("/")
            groups.setdefault(group, {})[name] = torch.from_numpy(np.array(array))
        with torch.no_grad():
            for name, tensor in self.adapter.parameters.items():
                tensor.copy_(groups["parameter"][name])
        restore_optimiser(self.optimiser, groups.get("optimiser", {}))
        self.adapter.restore(groups.get("state", {}))
        self.rows = [(int(a), int(b), c, d) for a, b, c, d in found.arrays["rows"].tolist()]
        self.step = found.step
        self._loss, self._n_losses = found.values["loss"], found.values["n_losses"]

    def columns(self) -> dict[str, Any]:
        names = [column.name for column in ADAPTER_TRAINING.columns]
        return {name: [row[i] for row in self.rows] for i, name in enumerate(names)}


def _run(config: AdaptStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    backbone = load_backbone(config.backbone, inputs, runtime.device, runtime.reporter)
    if config.is_read:
        tensors = config.adapter.read(backbone)
        out.write(FILE, save(_on_cpu(tensors)))
        return {"n_parameters": sum(tensor.numel() for tensor in tensors.values())}
    rows = rows_of_draw(inputs["few_shot"])
    labels = labels_of(inputs["images"])[rows]
    classes, targets = np.unique(labels, return_inverse=True)
    names = class_names_of(inputs["images"])
    embeddings, _ = load_classifier(inputs["classifier"], runtime.device)
    task = Task([names[i] for i in classes], config.templates, normalize(embeddings[classes], dim=-1))
    generator = torch.Generator().manual_seed(config.adapter.seed)
    adapter = config.adapter.begin(backbone, task, generator)
    training = _Training(adapter, Recipe(config.adapter, len(rows)), out)
    training.restore()
    batches = _batches(config, inputs, rows, targets, training, backbone, runtime)
    loss = _take_steps(training, batches, runtime)
    out.write(FILE, save(_on_cpu(adapter.tensors())))
    out.write_table(ADAPTER_TRAINING, training.columns())
    return {
        "n_images": len(rows),
        "n_classes": len(classes),
        "n_steps": training.step,
        "n_parameters": sum(tensor.numel() for tensor in adapter.parameters.values()),
        "loss": training.rows[-1][2] if training.rows else loss,
    }


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _take_steps(training: _Training, batches: Iterator[Batch], runtime: Runtime) -> float:
    """Takes the remaining steps. SIGINT, SIGTERM and SIGHUP end it with a checkpoint."""
    last, loss, saved = training.recipe.n_steps, math.nan, time.monotonic()
    with contextlib.ExitStack() as opened:
        deferred = opened.enter_context(deferred_signals())
        bar = opened.enter_context(runtime.reporter.bar("adapt", last, "steps", training.step))
        for batch in batches:
            loss = training.take_step(batch, runtime.device)
            bar.advance(note=f"loss {loss:.4g}")
            now = time.monotonic()
            if deferred.signal is not None or now - saved >= runtime.checkpoint_seconds:
                training.save()
                saved = now
            if deferred.signal is not None:
                break
    return loss


def _batches(
    config: AdaptStageConfig,
    inputs: Inputs,
    rows: np.ndarray,
    targets: np.ndarray,
    training: _Training,
    backbone: Backbone,
    runtime: Runtime,
) -> Iterator[Batch]:
    """The batches of the remaining steps."""
    recipe, adapter = training.recipe, config.adapter
    steps = range(training.step, recipe.n_steps)
    chosen = [recipe.images(step) for step in steps]
    labels = [torch.from_numpy(targets[one]).long().to(runtime.device) for one in chosen]
    views = [_view(adapter, recipe.epoch_of(step)) for step in steps]
    if "features" in inputs:
        features = load_features(inputs["features"]).to(runtime.device)
        for one, of_step, view in zip(chosen, labels, views, strict=True):
            yield Batch(of_step, features=features[torch.from_numpy(one), view or 0])
        return
    assert config.dataset is not None
    images = indexed_images(config.dataset, inputs["images"], backbone.preprocess)
    items = [[(int(row), view) for row in rows[one]] for one, view in zip(chosen, views, strict=True)]
    loader = loader_of(Views(images, backbone.image_size, adapter.seed), items, runtime)
    for of_step, pixels in zip(labels, prefetch(loader), strict=True):
        if isinstance(pixels, UserError):
            raise pixels
        pixels = pixels.to(runtime.device)
        if adapter.adapts_images:
            yield Batch(of_step, images=pixels)
        else:
            with torch.no_grad():
                features = unit_features(backbone, pixels)
            yield Batch(of_step, features=features)


def _view(adapter: AdapterConfig, epoch: int) -> View:
    """The number of the view that an epoch sees."""
    if adapter.views == "fresh":
        return epoch
    return epoch % adapter.views if adapter.views else None


def _predict(config: AdaptStageConfig, inputs: Upstreams) -> Prediction:
    adapter = config.adapter
    adapter.check(config.backbone.outline())
    if not config.is_read and (names := expected_classes(inputs["images"])) is not None:
        adapter.check_classes(config.backbone, names, config.templates)
    width = inputs["weights"].fact("width")
    if config.is_read or width is None:
        return Prediction()
    n_images, n_classes = inputs["few_shot"].fact("n_images"), inputs["few_shot"].fact("n_classes")
    if n_images is None or n_classes is None:
        return Prediction()
    recipe = Recipe(adapter, n_images)
    n_passes = recipe.n_steps * min(adapter.batch_size, n_images)
    effort = [*load_amounts(inputs["weights"])]
    if adapter.adapts_images or "features" not in inputs:
        passes = _PASSES if adapter.adapts_images else 1
        effort += image_amounts(config.backbone, inputs["weights"], passes * n_passes, heads=True) or []
    if texts := adapter.texts_per_step(n_classes, len(config.templates)):
        effort += text_amounts(config.backbone, inputs["weights"], _PASSES * recipe.n_steps * texts)
    n_bytes = MANIFEST_BYTES + expected_bytes(ADAPTER_TRAINING, min(recipe.n_steps, _ROWS), _BYTES_PER_ROW)
    return Prediction({"n_images": n_images}, n_bytes, 0, effort, recipe.n_steps)


def _source(config: AdaptStageConfig) -> Source:
    path = config.adapter.weights_file()
    return Source("trained") if path is None else Source(file_fingerprint(path), {"checkpoint": str(path)})


STAGE = Stage(
    name="adapt",
    version=1,
    section="adapters",
    description="Adapters, such as MaPLe's prompts.",
    run=_run,
    source=_source,
    predict=_predict,
)
