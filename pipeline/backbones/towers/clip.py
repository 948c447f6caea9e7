"""`CutClip`: what the cut CLIP models of open_clip share, whatever their image tower is.

Shapes: B images, T tokens, d channels at the hook, E embedding, C classes, n texts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from patchsae.pipeline.backbones.backbone import ExtractConfig, as_dtype, resolve_block
from patchsae.storage.errors import UserError
from patchsae.storage.tokens import TokenLayout

_TEXTS_PER_BATCH = 256


class CutClip(ABC):
    """The part of `Backbone` that does not depend on the image tower.

    A subclass adds `head`, `tail`, `layout_of` and `blocks_of`. `tail(head(images))` equals
    `model.encode_image(images)`.

    A model with a bias on its logits, such as SigLIP, has the same bias for every class. It changes neither
    which class is largest nor the softmax over classes, so it is left out.
    """

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[Sequence[str]], Tensor],
        extract: ExtractConfig,
        name: str,
        settings: dict[str, Any],
    ) -> None:
        self.layout = self.layout_of(model.visual, name)
        self.blocks, self.width = self.blocks_of(model.visual)
        self.model: Any = model.eval().requires_grad_(False)
        self.visual: Any = model.visual
        self.image_size: tuple[int, int] = tuple(model.visual.image_size)
        self.n_blocks = len(self.blocks)
        self.hook_block = resolve_block(extract.hook_block, self.n_blocks)
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.settings = settings
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.dtype = as_dtype(extract.precision)
        self.device = "cpu"

    @staticmethod
    @abstractmethod
    def layout_of(visual: Any, name: str) -> TokenLayout:
        """The tokens of an image. Raises UserError if the image tower of the model `name` cannot be cut."""

    @staticmethod
    @abstractmethod
    def blocks_of(visual: Any) -> tuple[list[nn.Module], int]:
        """The blocks of an image tower, and its width."""

    @abstractmethod
    def head(self, images: Tensor) -> Tensor: ...

    @abstractmethod
    def tail(self, activations: Tensor) -> Tensor: ...

    def to(self, device: str) -> Self:
        """Moves the model and casts it to the precision of the forward pass. Digest `state` before."""
        self.model.to(device=device, dtype=self.dtype)
        self.device = device
        return self

    def state(self) -> dict[str, Tensor]:
        return dict(self.model.state_dict())

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts)).to(self.device)
        features: Tensor = self.model.encode_text(tokens)
        return features.float()

    def class_embeddings(
        self,
        names: Sequence[str],
        templates: Sequence[str],
        renormalise: bool,
        advance: Callable[[int], object] | None = None,
    ) -> Tensor:
        """As in `Backbone`, from the prompts that `prompts_of` makes."""
        texts = prompts_of(names, templates)
        features = []
        for i in range(0, len(texts), _TEXTS_PER_BATCH):
            batch = texts[i : i + _TEXTS_PER_BATCH]
            features.append(self.encode_text(batch))
            if advance is not None:
                advance(len(batch))
        unit = normalize(torch.cat(features), dim=-1)
        mean = unit.view(len(names), len(templates), -1).mean(dim=1)
        return normalize(mean, dim=-1) if renormalise else mean


_TEXT_PARTS = (
    "transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "text", "text_decoder",
)  # fmt: skip


def keep_images(backbone: Any) -> None:
    """Frees the memory of the text tower. `encode_text` and `class_embeddings` must not be called any more."""
    model = getattr(backbone, "base", backbone).model
    for name in _TEXT_PARTS:
        if getattr(model, name, None) is not None:
            setattr(model, name, None)


def keep_texts(backbone: Any) -> None:
    """Frees the memory of the image tower. `head` and `tail` must not be called any more."""
    clip = getattr(backbone, "base", backbone)
    clip.model.visual, clip.visual, clip.blocks = None, None, []


def prompts_of(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """The prompts of every class, class by class. Underscores of class names are spaces."""
    return [template.format(name.replace("_", " ")) for name in names for template in templates]


def cannot_cut(name: str, tower: str) -> UserError:
    """The error for a model whose image tower, of the class `tower`, has no blocks to cut it at."""
    return UserError(
        f"backbone {name}: its image tower is a {tower}, and only vision transformers can be cut at a block; "
        "choose a model such as ViT-B-16 (docs/models.md lists them)."
    )
