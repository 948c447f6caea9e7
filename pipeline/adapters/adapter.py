"""What every adapter has: the base of its config, and the interface with which the stage `adapt` trains it.

Shapes: B images, E embedding, C classes of the task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig, ExtractConfig, Outline
from patchsae.pipeline.classification.classifier import Prompts
from patchsae.pipeline.core.config import Config, OptionalDatasetName, PlainBackboneName, Unhashed
from patchsae.pipeline.images.tables import Classes
from patchsae.storage.errors import UserError


@dataclass(frozen=True)
class Task:
    """The classes that an adapter learns to tell apart."""

    class_names: Sequence[str]
    templates: Sequence[str]
    """Zero-shot prompts of the classes, each with one `{}` in place of the class name."""
    embeddings: Tensor
    """[C, E]: the zero-shot class embeddings of the backbone before it is adapted, of length 1."""


@dataclass(frozen=True)
class Batch:
    """A step's images. `features` are those of the backbone before it is adapted."""

    labels: Tensor  # [B] int64, 0 to C - 1
    images: Tensor | None = None  # [B, 3, height, width] float32, preprocessed
    features: Tensor | None = None  # [B, E] float32, of length 1


class Adapter(Protocol):
    """A backbone with an adapter's parameters, in training."""

    parameters: Mapping[str, Tensor]
    """What is trained: float32 leaf tensors by name."""

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a step. `batch` has images if the method adapts the image tower, else features."""
        ...

    def end_epoch(self, epoch: int, n_epochs: int) -> None:
        """Is told when epoch `epoch` of `n_epochs`, counted from 0, is done."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint needs beside `parameters`; empty for most methods."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` returned."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What is saved when training is done, and what `AdapterConfig.apply` gets."""
        ...


def unit_features(backbone: Backbone, images: Tensor) -> Tensor:
    """Preprocessed images [B, 3, height, width] -> image features of length 1: [B, E]. It can be differentiated."""
    return normalize(backbone.tail(backbone.head(images)), dim=-1)


class Stateless:
    """The part of `Adapter` of methods that keep nothing beside their parameters, and save these."""

    parameters: Mapping[str, Tensor]

    def end_epoch(self, epoch: int, n_epochs: int) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        pass

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.parameters)


class AdapterConfig(Config):
    """Base of adapter configs. A subclass adds `kind: Literal[...] = ...`, its own fields, `begin` and `apply`.

    The defaults of a subclass are the published hyperparameters of its method.
    """

    backbone: PlainBackboneName
    """The backbone that is adapted."""
    dataset: OptionalDatasetName = None
    """The images that it is adapted to. It may be left out if the adapter is read from a file."""
    split: str = "train"
    """The split that the images are drawn from."""
    classes: Classes | None = None
    """The classes that it is adapted to: the first half (`base`), the second (`novel`), or these, given by name or
    by id. All classes if not given."""
    shots: int | None = Field(16, ge=1)
    """How many images of each class are drawn. All images if null."""
    seed: int = Field(1, ge=0)
    """The seed of the draw, of the order of the images, of their views and of random initial weights."""
    views: Annotated[int, Field(ge=0)] | Literal["fresh"] = "fresh"
    """`fresh`: in every epoch a new random crop of each image, mirrored or not. A number n: in epoch e the crop e
    modulo n, which is the same whenever it comes. 0: the whole image. With a number, methods that leave the image
    tower as it is train from cached features."""
    prompts: Prompts = Prompts()
    """The prompts of methods that do not learn their own."""
    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.002, gt=0)
    """The learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """The momentum of `sgd`."""
    weight_decay: float = Field(5e-4, ge=0)
    batch_size: int = Field(4, ge=1)
    """Images per step. The images that are left over at the end of an epoch wait for the next one."""
    epochs: int = Field(5, ge=1)
    """How often all drawn images are seen, unless `steps` says otherwise."""
    steps: int | None = Field(None, ge=1)
    """The number of steps, in place of `epochs`."""
    schedule: Literal["epoch", "step", "constant"] = "epoch"
    """The rate falls along a cosine from epoch to epoch, or from step to step, or stays."""
    warmup_epochs: int = Field(1, ge=0)
    """Epochs at the start in which the rate is `warmup_lr`."""
    warmup_lr: float = Field(1e-5, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    """The type of the products in training. Weights, their updates and the loss are float32."""
    extract: Annotated[ExtractConfig | None, Unhashed("hashed by the stage `extract`")] = None
    """Where the adapted image tower is cut, and with which precision it is run; as the backbone's if not given."""

    adapts_images: ClassVar[bool] = True
    """Whether the method changes the image tower, and so needs images for every step."""

    @model_validator(mode="after")
    def _learns_from_images(self) -> Self:
        if self.dataset is None and self.weights_file() is None:
            raise ValueError("`dataset` is missing; name the images that it is adapted to")
        return self

    def key_config(self) -> dict[str, Any]:
        """The fields that go into a key. How an adapter is trained does not count if it is read from a file."""
        hashed = super().key_config()
        if self.weights_file() is None:
            return hashed
        return {name: value for name, value in hashed.items() if name not in AdapterConfig.model_fields}

    def weights_file(self) -> Path | None:
        """The file of published weights that the adapter is read from, in place of being trained; None if none is."""
        return None

    def check(self, outline: Outline) -> None:
        """Raises UserError if the backbone, of which `outline` is known, cannot be adapted in this way.

        A plan calls it, so it loads no weights.
        """

    def check_classes(self, base: BackboneConfig, names: Sequence[str], templates: Sequence[str]) -> None:
        """Raises UserError if the adapted backbone cannot read these. See `BackboneConfig.check_classes`.

        `base` is the backbone that is adapted.
        """
        base.check_classes(names, templates)

    def texts_per_step(self, n_classes: int, n_templates: int) -> float:
        """How many texts of full length the text tower reads in a step of training, for predictions of time."""
        return 0

    def adapted(self, outline: Outline) -> Outline:
        """The outline of the adapted backbone."""
        return outline

    def begin(self, backbone: Backbone, task: Task, generator: torch.Generator) -> Adapter:
        """The adapter before its first step. It may change `backbone`, which belongs to it from now on.

        Random initial weights are drawn from `generator`, which is on the CPU.
        """
        raise NotImplementedError

    def read(self, backbone: Backbone) -> dict[str, Tensor]:
        """The tensors of `weights_file`, by the names that `apply` knows.

        Raises UserError if they are not those of this method, or of another depth, length or backbone.
        """
        raise NotImplementedError

    def apply(self, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Backbone:
        """The adapted backbone, from the backbone on the CPU and what was saved. It may change `backbone`."""
        raise NotImplementedError


def cannot_adapt(kind: str, why: str) -> UserError:
    """The error for a backbone that the method `kind` cannot adapt."""
    return UserError(f"adapter of kind {kind}: {why}; choose a backbone such as ViT-B-16, or another kind.")
