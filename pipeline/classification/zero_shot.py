"""`ZeroShot`, with which evaluations classify images from their activations at the hook.

Shapes: B images of T tokens, d channels, E embedding, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig
from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.classification.classifier import load_classifier
from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.stage import Inputs


def all_on_top(scores: Tensor, label_sets: Tensor) -> Tensor:
    """Whether the n classes of an image have its n largest scores: bool [B].

    `scores` [B, C]; `label_sets` bool [B, C], with at least one class per image. For an image of one class it is
    whether the largest score is that of its class.
    """
    least_of_own = scores.masked_fill(~label_sets, torch.inf).amin(dim=1)
    return least_of_own > scores.masked_fill(label_sets, -torch.inf).amax(dim=1)


@dataclass(frozen=True)
class ZeroShot:
    """Classifies images by the cosines between their features and the class embeddings.

    The rest of the backbone (`tail`) computes the features from the activations at the hook.
    """

    backbone: Backbone
    embeddings: Tensor  # [C, E]
    logit_scale: float

    @classmethod
    def load(
        cls, config: BackboneConfig, inputs: Inputs, device: str, reporter: Reporter | None = None
    ) -> ZeroShot:
        """Opens the artifacts `weights` and `classifier`, and those that the backbone is made from."""
        backbone = load_backbone(config, inputs, device, reporter)
        return cls(backbone, *load_classifier(inputs["classifier"], device))

    def features(self, activations: Tensor) -> Tensor:
        """[B, T, d] -> image features of length 1: [B, E]."""
        return normalize(self.backbone.tail(activations), dim=-1)

    def cosines(self, activations: Tensor) -> Tensor:
        """[B, T, d] -> cosine of each image with each class: [B, C]."""
        return self.features(activations) @ self.embeddings.T

    def logits(self, activations: Tensor) -> Tensor:
        """[B, T, d] -> [B, C]."""
        return self.logit_scale * self.cosines(activations)

    def predict(self, activations: Tensor) -> Tensor:
        """[B, T, d] -> class ids [B]. The logit scale is left out: it is positive and changes no maximum."""
        return self.cosines(activations).argmax(dim=-1)
