"""`ZeroShot`, with which evaluations classify images from their activations at the hook.

Shapes: B images of T tokens, d channels, E embedding, C classes that images are classified among, which may be a part
of the dataset's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
    whether the largest score is that of its class. Of equal scores, which classes of the same name have, the lower
    class id comes first.
    """
    n = label_sets.sum(dim=1, keepdim=True)
    if bool((n == 1).all()):
        return label_sets.gather(1, scores.argmax(dim=1, keepdim=True)).squeeze(1)
    order = scores.argsort(dim=1, descending=True, stable=True)
    is_above = torch.arange(scores.shape[1], device=scores.device) < n
    return (label_sets.gather(1, order) | ~is_above).all(dim=1)


@dataclass(frozen=True)
class ZeroShot:
    """Classifies images by the cosines between their features and the class embeddings.

    The rest of the backbone (`tail`) computes the features from the activations at the hook.
    """

    backbone: Backbone
    embeddings: Tensor  # [C, E]
    logit_scale: float
    classes: np.ndarray  # [C] int64: their ids in the dataset

    @classmethod
    def load(
        cls,
        config: BackboneConfig,
        inputs: Inputs,
        device: str,
        reporter: Reporter | None = None,
        classes: np.ndarray | None = None,
    ) -> ZeroShot:
        """Opens the artifacts `weights` and `classifier`, and those that the backbone is made from.

        `classes` are the ids of the classes that images are classified among; all of the dataset if not given.
        """
        backbone = load_backbone(config, inputs, device, reporter)
        embeddings, logit_scale = load_classifier(inputs["classifier"], device)
        if classes is None:
            classes = np.arange(len(embeddings))
        return cls(backbone, embeddings[torch.from_numpy(classes).to(device)], logit_scale, classes)

    def features(self, activations: Tensor) -> Tensor:
        """[B, T, d] -> image features of length 1: [B, E]."""
        return normalize(self.backbone.tail(activations), dim=-1)

    def logits(self, activations: Tensor) -> Tensor:
        """[B, T, d] -> [B, C]."""
        return self.logit_scale * self.features(activations) @ self.embeddings.T
