"""Adapter `linear_probe`: learned class embeddings that begin as the zero-shot ones (ZS-LP, arXiv 2312.12730)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from patchsae.pipeline.adapters.adapter import Adapter, AdapterConfig, Batch, Stateless, Task
from patchsae.pipeline.adapters.learned_classes import LearnedClasses, tensors_of
from patchsae.pipeline.backbones.backbone import Backbone


class LinearProbeConfig(AdapterConfig):
    """A linear classifier on frozen image features, which begins as the zero-shot classifier.

    Classes that it was not trained on keep their zero-shot embeddings. The defaults are those published with
    ZS-LP (arXiv 2312.12730; its code's `SGD_lr1e-1_B256_ep300`, and 20 fixed views of each image).
    """

    kind: Literal["linear_probe"] = "linear_probe"
    views: Annotated[int, Field(ge=0)] | Literal["fresh"] = 20
    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    batch_size: int = Field(256, ge=1)
    epochs: int = Field(300, ge=1)

    adapts_images: ClassVar[bool] = False

    def begin(self, backbone: Backbone, task: Task, generator: torch.Generator) -> Adapter:
        return LinearProbe(task, backbone.logit_scale)

    def apply(self, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Backbone:
        return LearnedClasses(backbone, tensors)


class LinearProbe(Stateless):
    """Implements `Adapter`. Both the features and the rows of the classifier are scaled to length 1."""

    def __init__(self, task: Task, logit_scale: float) -> None:
        self.class_names = task.class_names
        self.logit_scale = logit_scale
        weight = task.embeddings.detach().float().clone().requires_grad_()
        self.parameters = {"class_embeddings": weight}

    def loss(self, batch: Batch) -> Tensor:
        assert batch.features is not None
        rows = normalize(self.parameters["class_embeddings"], dim=-1)
        return cross_entropy(self.logit_scale * batch.features @ rows.T, batch.labels)

    def tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.class_names, self.parameters["class_embeddings"])
