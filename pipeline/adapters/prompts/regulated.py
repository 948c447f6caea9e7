"""`RegulatedAdapter`: prompts that PromptSRC holds near the frozen backbone and averages over epochs.

Formulas: arXiv 2307.06948, sections 3.2 and 3.3, with the reductions of its code. Shapes: B images, C classes,
E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, l1_loss, normalize

from patchsae.pipeline.adapters.adapter import Batch, Task
from patchsae.pipeline.adapters.prompts.images import image_features
from patchsae.pipeline.adapters.prompts.training import PromptAdapter
from patchsae.pipeline.adapters.prompts.vectors import PromptVectors
from patchsae.pipeline.backbones.towers.clip import CutClip, prompts_of
from patchsae.pipeline.backbones.towers.vit import ClipVit

_TEXTS_PER_BATCH = 256


@dataclass(frozen=True)
class Regulation:
    """The weights of what holds the prompts, and of the epochs in their average."""

    text_weight: float
    image_weight: float
    mean: float
    std: float

    def epoch_weight(self, epoch: int, n_epochs: int) -> float:
        """The weight of an epoch, counted from 0: a Gaussian around `mean`, counted from 1; all add up to 1."""
        logs = [-0.5 * ((e + 1 - self.mean) / self.std) ** 2 for e in range(n_epochs)]
        # Divided by the largest, so that a mean far from all epochs leaves something.
        weights = [math.exp(log - max(logs)) for log in logs]
        return weights[epoch] / sum(weights)


class RegulatedAdapter(PromptAdapter):
    """Implements `Adapter`. `tensors` are the average over the epochs that are done, if there are any."""

    def __init__(
        self,
        clip: CutClip,
        task: Task,
        tensors: Mapping[str, Tensor],
        vectors_of: Callable[[Mapping[str, Tensor]], PromptVectors],
        words: str | None,
        regulation: Regulation,
    ) -> None:
        super().__init__(clip, task, tensors, vectors_of, words)
        self.regulation = regulation
        self.frozen_text = _mean_text_features(clip, task)
        self._average: dict[str, Tensor] = {}
        self._weight = 0.0

    def float32_loss(self, batch: Batch) -> Tensor:
        """CE(logits, labels) + text L1 + image L1 + KL(frozen || prompted).

        The L1 distances are means over numbers, times their weights. The KL divergence is a sum over classes and
        images, divided by B C.
        """
        assert batch.images is not None and isinstance(self.clip, ClipVit)
        vectors = self.vectors_of(self.parameters)
        tokens = self.clip.tokens(batch.images)
        with torch.no_grad():
            frozen_image = normalize(self.clip.features(tokens, 0), dim=-1)
        image = normalize(image_features(self.clip, tokens, vectors.image), dim=-1)
        text = self.text_features(vectors)
        logits = self.clip.logit_scale * image @ text.T
        frozen_logits = self.clip.logit_scale * frozen_image @ self.frozen_text.T
        divergence = kl_div(
            logits.log_softmax(dim=1), frozen_logits.log_softmax(dim=1), reduction="sum", log_target=True
        )
        return (
            cross_entropy(logits, batch.labels)
            + self.regulation.text_weight * l1_loss(text, self.frozen_text)
            + self.regulation.image_weight * l1_loss(image, frozen_image)
            + divergence / logits.numel()
        )

    def end_epoch(self, epoch: int, n_epochs: int) -> None:
        """Takes the prompts into their average, which is kept as a running mean."""
        weight = self.regulation.epoch_weight(epoch, n_epochs)
        self._weight += weight
        share = weight / self._weight if self._weight > 0 else 1.0
        for name, tensor in self.parameters.items():
            now = tensor.detach().clone()
            self._average[name] = self._average[name].lerp(now, share) if name in self._average else now

    def state(self) -> dict[str, Tensor]:
        if not self._average:
            return {}
        averages = {f"average.{name}": tensor.cpu() for name, tensor in self._average.items()}
        return {**averages, "weight": torch.tensor(self._weight, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._weight = float(state["weight"]) if state else 0.0
        self._average = {
            name: state[f"average.{name}"].to(tensor.device, copy=True)
            for name, tensor in self.parameters.items()
            if f"average.{name}" in state
        }

    def tensors(self) -> dict[str, Tensor]:
        if not self._average:
            return super().tensors()
        return {name: tensor.cpu().clone() for name, tensor in self._average.items()}


def _mean_text_features(clip: CutClip, task: Task) -> Tensor:
    """The frozen text features [C, E]: the mean over templates, before lengths are made 1, then of length 1.

    `Task.embeddings` is the mean of features of length 1 instead.
    """
    texts = prompts_of(task.class_names, task.templates)
    with torch.no_grad():
        parts = [
            clip.encode_text(texts[i : i + _TEXTS_PER_BATCH]) for i in range(0, len(texts), _TEXTS_PER_BATCH)
        ]
    mean = torch.cat(parts).view(len(task.class_names), len(task.templates), -1).mean(dim=1)
    return normalize(mean, dim=-1)
