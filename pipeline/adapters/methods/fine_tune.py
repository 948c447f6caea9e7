"""Adapter `fine_tune`: plain fine-tuning of the last blocks of both towers by cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from patchsae.pipeline.adapters.adapter import (
    Adapter,
    AdapterConfig,
    Batch,
    Stateless,
    Task,
    cannot_adapt,
    unit_features,
)
from patchsae.pipeline.backbones.backbone import Backbone, Outline
from patchsae.pipeline.backbones.towers.clip import prompts_of


class FineTuneConfig(AdapterConfig):
    """The last blocks of the image tower and of the text tower, trained by cross-entropy over the classes.

    The defaults are those of the harness in which it transfers better than every adapter (word_soups,
    arXiv 2311.13612: its code's 750 steps of SGD at 2e-5 on batches of 64, with the last three blocks of each
    tower and logits of 60 times the cosine).
    """

    kind: Literal["fine_tune"] = "fine_tune"
    blocks: int = Field(3, ge=1)
    """How many of the last blocks of the image tower are trained."""
    text_blocks: int = Field(3, ge=0)
    """How many of the last blocks of the text tower are trained; all if it has fewer."""
    logit_scale: float = Field(60.0, gt=0)
    """The factor of the cosines in training. CLIP's own is 100."""
    lr: float = Field(2e-5, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    batch_size: int = Field(64, ge=1)
    steps: int | None = Field(750, ge=1)
    schedule: Literal["epoch", "step", "constant"] = "constant"
    warmup_epochs: int = Field(0, ge=0)

    def check(self, outline: Outline) -> None:
        if outline.shapes and "visual.transformer.resblocks.0.attn.in_proj_weight" not in outline.shapes:
            raise cannot_adapt("fine_tune", "the image tower is not open_clip's own vision transformer")
        if (
            self.text_blocks
            and outline.shapes
            and "transformer.resblocks.0.attn.in_proj_weight" not in outline.shapes
        ):
            raise cannot_adapt(
                "fine_tune", "the text tower is not open_clip's own transformer; set `text_blocks: 0`"
            )
        if self.blocks > outline.n_blocks:
            raise cannot_adapt(
                "fine_tune", f"`blocks` is {self.blocks}, and the image tower has {outline.n_blocks}"
            )

    def texts_per_step(self, n_classes: int, n_templates: int) -> float:
        return n_classes * n_templates if self.text_blocks else 0

    def begin(self, backbone: Backbone, task: Task, generator: torch.Generator) -> Adapter:
        return FineTune(self, backbone, task)

    def apply(self, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Backbone:
        state = backbone.state()
        with torch.no_grad():
            for name, tensor in tensors.items():
                state[name].copy_(tensor)
        backbone.settings["adapter"] = "fine_tune"
        return backbone


class FineTune(Stateless):
    """Implements `Adapter`."""

    def __init__(self, config: FineTuneConfig, backbone: Any, task: Task) -> None:
        self.backbone = backbone
        self.logit_scale = config.logit_scale
        self.embeddings: Tensor | None = None if config.text_blocks else task.embeddings
        self.texts = prompts_of(task.class_names, task.templates)
        self.n_classes = len(task.class_names)
        model = backbone.model
        trained = [("visual.", model.visual.transformer.resblocks, config.blocks)]
        if config.text_blocks:
            trained.append(("", model.transformer.resblocks, config.text_blocks))
        parameters: dict[str, Tensor] = {}
        self.parameters = parameters
        for tower, blocks, n_last in trained:
            first = max(0, len(blocks) - n_last)
            for number in range(first, len(blocks)):
                for name, parameter in blocks[number].named_parameters():
                    full = f"{tower}transformer.resblocks.{number}.{name}"
                    parameters[full] = parameter.requires_grad_()

    def loss(self, batch: Batch) -> Tensor:
        assert batch.images is not None
        features = unit_features(self.backbone, batch.images)
        return cross_entropy(self.logit_scale * features @ self._classes().T, batch.labels)

    def _classes(self) -> Tensor:
        """The class embeddings [C, E] of the present text tower."""
        if self.embeddings is not None:
            return self.embeddings
        unit = normalize(self.backbone.encode_text(self.texts), dim=-1)
        return normalize(unit.view(self.n_classes, -1, unit.shape[1]).mean(dim=1), dim=-1)
