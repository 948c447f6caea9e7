"""What a backbone is: a CLIP image tower cut in two at the hook, and its text tower.

Shapes: B images, T tokens per image (prefix tokens first), d channels at the hook, E embedding, n texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from pipeline.config import Config
from storage.activations import ActivationDtype
from storage.errors import UserError


class ExtractConfig(Config):
    """Where and how activations are taken."""

    hook_block: int = -2
    """The residual stream after this block; negative counts from the end (-2: the last but one)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the weights and products of the forward pass."""
    dtype: ActivationDtype = "float16"
    """Of the cached activations."""


class Backbone(Protocol):
    """A frozen CLIP with `tail(head(images)) == ` its own image features."""

    n_blocks: int
    hook_block: int
    """Counted from 0."""
    width: int
    tokens_per_image: int
    n_prefix_tokens: int
    grid: tuple[int, int]
    """Patches per column and row; `tokens_per_image - n_prefix_tokens` of them."""
    image_size: tuple[int, int]
    logit_scale: float
    """The factor on cosines, already exponentiated."""

    def preprocess(self, image: Image.Image) -> Tensor:
        """An RGB image as the tower's input: float32 [3, height, width]."""
        ...

    def head(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> activations at the hook, float32 [B, T, d]."""
        ...

    def tail(self, activations: Tensor) -> Tensor:
        """[B, T, d] -> image features, float32 [B, E], not normalised. Only the queries they need are run."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Text features, float32 [n, E], not normalised."""
        ...

    settings: dict[str, Any]
    """What else decides its outputs and is not seen in the weights: preprocessing, vocabulary. JSON."""

    def state(self) -> dict[str, Tensor]:
        """Every weight, by name."""
        ...

    def to(self, device: str) -> Backbone: ...


class BackboneConfig(Config):
    """Base of backbone configs; a subclass adds `kind: Literal[...] = ...`, `fingerprint` and `build`."""

    extract: ExtractConfig = ExtractConfig()

    def fingerprint(self) -> str:
        """A cheap sign of where the weights come from; changes when the file may have changed.

        Raises UserError if a named file is not there.
        """
        raise NotImplementedError

    def build(self) -> Backbone:
        """Loads the weights. Raises UserError if they are missing or do not fit the model."""
        raise NotImplementedError

    def activation_shape(self) -> tuple[int, int] | None:
        """(tokens per image, width) if it can be told without loading weights; for predictions only."""
        return None


def resolve_block(hook_block: int, n_blocks: int) -> int:
    """A block index counted from 0. Raises UserError if there is no such block before the last."""

    block = hook_block + n_blocks if hook_block < 0 else hook_block
    if not 0 <= block < n_blocks:
        raise UserError(
            f"extract.hook_block: {hook_block} is out of range for {n_blocks} blocks; "
            f"give {-n_blocks} to -1, or 0 to {n_blocks - 1}."
        )
    return block


def as_dtype(precision: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
