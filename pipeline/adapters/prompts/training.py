"""`PromptAdapter`: a CLIP whose prompts are trained with the cross-entropy of its zero-shot classifier.

Shapes: B images, C classes, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from patchsae.pipeline.adapters.adapter import Batch, Stateless, Task
from patchsae.pipeline.adapters.prompts.images import image_features
from patchsae.pipeline.adapters.prompts.texts import LearnedContext
from patchsae.pipeline.adapters.prompts.vectors import PromptVectors
from patchsae.pipeline.backbones.towers.clip import CutClip
from patchsae.pipeline.backbones.towers.vit import ClipVit


class PromptAdapter(Stateless):
    """Implements `Adapter`. A tower without prompts is not run: its outputs come with the task or the batch."""

    def __init__(
        self,
        clip: CutClip,
        task: Task,
        tensors: Mapping[str, Tensor],
        vectors_of: Callable[[Mapping[str, Tensor]], PromptVectors],
        words: str | None,
    ) -> None:
        """`vectors_of` makes prompts of the trained `tensors`. `words`: see `LearnedContext`."""
        self.clip = clip
        self.task = task
        self.vectors_of = vectors_of
        self.parameters: Mapping[str, Tensor] = {
            name: tensor.detach().to(clip.device).clone().requires_grad_() for name, tensor in tensors.items()
        }
        text = vectors_of(self.parameters).text
        self.context = LearnedContext(clip, task.class_names, len(text[0]), words) if len(text) else None

    def text_features(self, vectors: PromptVectors) -> Tensor:
        """[C, E], of length 1."""
        if self.context is None:
            return self.task.embeddings.to(self.clip.device)
        return normalize(self.context.encode(vectors.text), dim=-1)

    def image_features(self, batch: Batch, vectors: PromptVectors) -> Tensor:
        """[B, E], of length 1."""
        if not len(vectors.image):
            assert batch.features is not None
            return batch.features.to(self.clip.device)
        assert batch.images is not None and isinstance(self.clip, ClipVit)
        tokens = self.clip.tokens(batch.images)
        return normalize(image_features(self.clip, tokens, vectors.image), dim=-1)

    def logits(self, batch: Batch) -> Tensor:
        """Scaled cosines, [B, C]."""
        vectors = self.vectors_of(self.parameters)
        return self.clip.logit_scale * self.image_features(batch, vectors) @ self.text_features(vectors).T

    def loss(self, batch: Batch) -> Tensor:
        # The towers' weights have the type of their products. What follows them is float32 whatever the caller casts.
        with torch.autocast(torch.device(self.clip.device).type, enabled=False):
            return self.float32_loss(batch)

    def float32_loss(self, batch: Batch) -> Tensor:
        return cross_entropy(self.logits(batch), batch.labels)
