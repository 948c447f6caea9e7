"""Adapter `promptsrc`: self-regulating prompts (Khattak et al. 2023, arXiv 2307.06948)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from patchsae.pipeline.adapters.adapter import Adapter, Task
from patchsae.pipeline.adapters.prompts.independent import IndependentConfig
from patchsae.pipeline.backbones.backbone import Backbone
from patchsae.pipeline.classification.classifier import Prompts
from patchsae.pipeline.core.open_clip_data import imagenet_templates


def _published_prompts() -> Prompts:
    """60 of the 80 templates of CLIP's ImageNet evaluation."""
    return Prompts(templates=tuple(imagenet_templates()[:60]))


class PromptsrcConfig(IndependentConfig):
    """PromptSRC: prompts as in IVLP, held near the features and predictions of the backbone before it is adapted, and
    averaged over epochs. The defaults are those of its code (`vit_b16_c2_ep20_batch4_4+4ctx.yaml`) for
    generalisation from base to novel classes. For transfer from ImageNet it takes depths of 3, `average_mean: 6` and
    `average_std: 10`; for few shots of all classes 50 epochs and 30, 30 (45, 5 for fine-grained data sets)."""

    kind: Literal["promptsrc"] = "promptsrc"
    prompts: Prompts = Field(default_factory=_published_prompts)
    """The prompts whose mean text feature holds that of each class. As in PromptSRC's code, the first 60 of the 80 of
    CLIP's ImageNet evaluation; a backbone that does not know their words needs `templates: dataset`."""
    text_weight: float = Field(25.0, ge=0)
    """Weight of the distance of the text features from the backbone's (PromptSRC's code: `TEXT_LOSS_WEIGHT: 25`)."""
    image_weight: float = Field(10.0, ge=0)
    """Weight of the distance of the image features from the backbone's (PromptSRC's code: `IMAGE_LOSS_WEIGHT: 10`)."""
    average_mean: float = 15.0
    """The epoch, counted from 1, that has the largest weight in the average of the prompts (PromptSRC's code:
    `GPA_MEAN: 15`, of 20 epochs)."""
    average_std: float = Field(1.0, gt=0)
    """The standard deviation of the Gaussian of these weights, in epochs (PromptSRC's code: `GPA_STD: 1`)."""
    epochs: int = Field(20, ge=1)
    """How often all drawn images are seen (PromptSRC's code: `MAX_EPOCH: 20`)."""

    reads_prompts: ClassVar[bool] = True

    def begin(self, backbone: Backbone, task: Task, generator: torch.Generator) -> Adapter:
        from patchsae.pipeline.adapters.prompts.regulated import RegulatedAdapter, Regulation

        clip, tensors = self.clip_and_initial(backbone, generator)
        regulation = Regulation(self.text_weight, self.image_weight, self.average_mean, self.average_std)
        return RegulatedAdapter(clip, task, tensors, self.vectors, self.words(), regulation)
