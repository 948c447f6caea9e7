"""`PromptedClip`: a CLIP with learned prompts, cut at the hook.

Shapes: B images, T tokens, n prompt tokens, d channels, E embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from torch import Tensor
from torch.nn.functional import normalize

from patchsae.pipeline.adapters.prompts.images import inserting
from patchsae.pipeline.adapters.prompts.texts import LearnedContext
from patchsae.pipeline.adapters.prompts.vectors import PromptVectors
from patchsae.pipeline.backbones.towers.blocks import run_block
from patchsae.pipeline.backbones.towers.clip import CutClip
from patchsae.pipeline.backbones.towers.vit import ClipVit


class PromptedClip:
    """Implements `Backbone`. Prompt tokens of the image tower come last at the hook (`layout.n_suffix`).

    `head` gives the prompts of the blocks up to the hook, and `tail` those of the blocks after it.
    """

    def __init__(
        self,
        base: CutClip,
        vectors: PromptVectors,
        words: str | None,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Any],
    ) -> None:
        """`words`: see `LearnedContext`. `tensors`: what `vectors` were made of, as they are saved."""
        self.base = base
        self.vectors = vectors
        self.words = words
        self.tensors = tensors
        self.n_blocks, self.hook_block, self.width = base.n_blocks, base.hook_block, base.width
        self.image_size, self.logit_scale, self.preprocess = (
            base.image_size,
            base.logit_scale,
            base.preprocess,
        )
        n_suffix = len(vectors.image[0]) if len(vectors.image) else 0
        self.layout = replace(base.layout, n_suffix=n_suffix)
        self.settings: dict[str, Any] = {**base.settings, "adapter": {**settings, "words": words}}

    def head(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> float32 [B, T + n, d]. The blocks after the hook are not run."""
        if not len(self.vectors.image):
            return self.base.head(images)
        clip = self._vit()
        before = inserting(clip, self.vectors.image)
        x = clip.tokens(images)
        for number, block in enumerate(clip.blocks[: clip.hook_block + 1]):
            x = run_block(block, before(number, x))
        return x.float()

    def tail(self, activations: Tensor) -> Tensor:
        """float32 [B, T + n, d] -> float32 [B, E]."""
        if not len(self.vectors.image):
            return self.base.tail(activations)
        clip = self._vit()
        x = activations.to(clip.device, clip.dtype)
        return clip.features(x, clip.hook_block + 1, inserting(clip, self.vectors.image))

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """The features of whole texts, in which nothing is learned."""
        return self.base.encode_text(texts)

    def class_embeddings(
        self,
        names: Sequence[str],
        templates: Sequence[str],
        renormalise: bool,
        advance: Callable[[int], object] | None = None,
    ) -> Tensor:
        """As in `Backbone`. With a learned context there is one text per class, and `templates` are not read."""
        if not len(self.vectors.text):
            return self.base.class_embeddings(names, templates, renormalise, advance)
        vectors = [vector.to(self.base.device) for vector in self.vectors.text]
        context = LearnedContext(self.base, names, len(vectors[0]), self.words)
        embeddings = normalize(context.encode(vectors), dim=-1)
        if advance is not None:
            advance(len(names) * len(templates))
        return embeddings

    def state(self) -> dict[str, Tensor]:
        return {**self.base.state(), **{f"adapter.{name}": tensor for name, tensor in self.tensors.items()}}

    def to(self, device: str) -> Self:
        self.base.to(device)
        return self

    def _vit(self) -> ClipVit:
        assert isinstance(self.base, ClipVit), "Towers.of refuses other image towers"
        return self.base
