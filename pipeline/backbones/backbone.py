"""The interface of a backbone: a CLIP image tower, cut in two at the hook, and its text tower.

Extraction runs the first half, `head`. Zero-shot classification runs the second half, `tail`, and the text
tower.

Shapes: B images, T tokens per image, d channels at the hook, E embedding, C classes, n texts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, Self

import torch
from PIL import Image
from torch import Tensor

from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.core.config import Config, Unhashed
from patchsae.pipeline.core.stage import Inputs
from patchsae.storage.activations import ActivationDtype
from patchsae.storage.errors import UserError
from patchsae.storage.tokens import TokenLayout


class ExtractConfig(Config):
    """Where in the image tower activations are taken, and with which precision."""

    hook_block: int = -2
    """The block after which the residual stream is taken. A negative number counts from the end: -2 is the
    last block but one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """The type of the weights and products of the forward pass."""
    dtype: ActivationDtype = "float16"
    """The type in which activations are cached."""


@dataclass(frozen=True)
class Outline:
    """What is known of a backbone without its weights."""

    n_blocks: int
    width: int
    layout: TokenLayout
    """The tokens of an image at the hook."""
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, repr=False, compare=False)
    """Name -> shape of the tensors in `Backbone.state`. Those of the image tower alone if a text tower's would
    have to be fetched."""

    @property
    def n_parameters(self) -> int | None:
        """The numbers in the tensors of both towers. None if it is not known."""
        if "logit_scale" not in self.shapes:
            return None
        return sum(math.prod(shape) for shape in self.shapes.values())


class Backbone(Protocol):
    """A frozen CLIP model, of which `tail(head(images))` are the image features."""

    n_blocks: int
    hook_block: int
    """The number of the block after which the tower is cut, counted from 0."""
    width: int
    layout: TokenLayout
    """The tokens of an image at the hook."""
    image_size: tuple[int, int]
    logit_scale: float
    """The factor by which cosines are multiplied; already exponentiated."""

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB image -> the tower's input, float32 [3, height, width]."""
        ...

    def head(self, images: Tensor) -> Tensor:
        """Preprocessed images [B, 3, h, w] -> activations at the hook, float32 [B, T, d]."""
        ...

    def tail(self, activations: Tensor) -> Tensor:
        """Activations at the hook [B, T, d] -> image features, float32 [B, E], not normalised."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """n texts -> text features, float32 [n, E], not normalised."""
        ...

    def class_embeddings(
        self,
        names: Sequence[str],
        templates: Sequence[str],
        renormalise: bool,
        advance: Callable[[int], object] | None = None,
    ) -> Tensor:
        """The vectors that image features are compared with, one per class: float32 [C, E].

        For a backbone with prompts, it is the mean over templates of the text features scaled to length 1.
        With `renormalise` the mean is scaled to length 1 too. `advance` is called with the number of texts that
        were encoded since it was called last; all calls add up to `names` times `templates`.
        """
        ...

    settings: dict[str, Any]
    """What decides the outputs beside the weights, such as preprocessing and vocabulary. JSON values."""

    def state(self) -> dict[str, Tensor]:
        """Every weight by its name. The tensors share the memory of the model."""
        ...

    def to(self, device: str) -> Backbone: ...


class BackboneWiring(Protocol):
    """What the config of a backbone may ask of its experiment."""

    def backbone(self, name: str) -> BackboneConfig:
        """The config of the backbone with that name, after `resolved`."""
        ...

    def weights(self, backbone: str) -> str:
        """The address of the node that digests the weights of a backbone."""
        ...


class BackboneConfig(Config):
    """Base of backbone configs. A subclass adds `kind: Literal[...] = ...`, `fingerprint`, `outline`,
    `framing` and `build`.

    A backbone that is made from other artifacts, such as another backbone's weights or an adapter, names them
    in `inputs`, and `build` gets them.
    """

    extract: Annotated[ExtractConfig, Unhashed("hashed by the stage `extract`")] = ExtractConfig()

    def resolved(self, wiring: BackboneWiring) -> Self:
        """This config together with the configs that its names stand for; itself if it names none."""
        return self

    def with_extract(self, extract: ExtractConfig) -> Self:
        """This config with another hook, precision or type of the cached activations."""
        return self.model_copy(update={"extract": extract})

    def inputs(self, wiring: BackboneWiring) -> dict[str, str]:
        """Role -> address of the nodes that the backbone is made from, beside its own files."""
        return {}

    def fingerprint(self) -> str:
        """A string that changes when the weights may have changed, such as a file's size and time.

        Raises UserError if a file that the config names is not there.
        """
        raise NotImplementedError

    def location(self) -> dict[str, str]:
        """Where the weights lie, for the manifest; empty for weights that come with the package."""
        return {}

    def build(self, inputs: Inputs) -> Backbone:
        """Loads the weights. `inputs` are the artifacts that `inputs(wiring)` names.

        Raises UserError if weights are missing or do not fit the model.
        """
        raise NotImplementedError

    def outline(self) -> Outline:
        """Blocks, width and tokens of the backbone that `build` would make, without loading weights.

        A plan calls it. It reads the description of the architecture and, of a checkpoint, the names and
        shapes of its tensors. Raises UserError for whatever `build` would refuse and these show, with the
        same sentence: a tower that cannot be cut, a block that is out of range, a file that is not there.
        """
        raise NotImplementedError

    def framing(self) -> Framing:
        """Which part of an image `Backbone.preprocess` makes the tower's input of. It needs no weights."""
        raise NotImplementedError

    def check_classes(self, names: Sequence[str], templates: Sequence[str]) -> None:
        """Raises UserError if `Backbone.class_embeddings` would refuse these, with the same sentence.

        A plan calls it, so it loads no weights. Backbones that read any text have nothing to check.
        """


def resolve_block(hook_block: int, n_blocks: int) -> int:
    """A block's number counted from 0. Raises UserError if there is no such block among `n_blocks`."""

    block = hook_block + n_blocks if hook_block < 0 else hook_block
    if not 0 <= block < n_blocks:
        raise UserError(
            f"extract.hook_block: {hook_block} is out of range for {n_blocks} blocks; "
            f"give {-n_blocks} to -1, or 0 to {n_blocks - 1}."
        )
    return block


def as_dtype(precision: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
