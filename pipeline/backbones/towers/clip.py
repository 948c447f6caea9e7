"""`CutClip`: what the cut CLIP models of open_clip share, whatever their image tower is.

Shapes: B images, T tokens, d channels at the hook, E embedding, C classes, n texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from PIL import Image
from torch import Tensor, nn

from patchsae.pipeline.backbones.backbone import ExtractConfig, as_dtype, resolve_block
from patchsae.pipeline.backbones.towers.prompts import class_embeddings
from patchsae.storage.errors import UserError


class CutClip:
    """The part of `Backbone` that does not depend on the image tower.

    A subclass adds `head`, `tail`, `width`, `layout` and `image_size`. `tail(head(images))` equals
    `model.encode_image(images)`.

    A model with a bias on its logits, such as SigLIP, has the same bias for every class. It changes neither
    which class is largest nor the softmax over classes, so it is left out.
    """

    def __init__(
        self,
        model: Any,
        blocks: Sequence[nn.Module],
        preprocess: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[Sequence[str]], Tensor],
        extract: ExtractConfig,
        settings: dict[str, Any],
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.visual: Any = model.visual
        self.blocks = list(blocks)
        self.n_blocks = len(self.blocks)
        self.hook_block = resolve_block(extract.hook_block, self.n_blocks)
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.settings = settings
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.dtype = as_dtype(extract.precision)
        self.device = "cpu"

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
        return class_embeddings(self.encode_text, names, templates, renormalise, advance)


def cannot_cut(name: str, tower: str) -> UserError:
    """The error for a model whose image tower, of the class `tower`, has no blocks to cut it at."""
    return UserError(
        f"backbone {name}: its image tower is a {tower}, and only vision transformers can be cut at a block; "
        "choose a model such as ViT-B-16 (docs/models.md lists them)."
    )
