"""Stage `classifier`: zero-shot class embeddings from prompts.

E embedding, C classes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.backbones.base import BackboneConfig
from pipeline.config import Config
from pipeline.datasets.base import DatasetConfig
from pipeline.stage import Inputs, Runtime, Stage
from pipeline.weights import load_backbone
from storage import tables
from storage.artifacts import Artifact, Builder, Summary
from storage.keys import digest_json

FILE = "classifier.safetensors"
_TEXTS_PER_BATCH = 256


class Prompts(Config):
    """How class names become text."""

    templates: Literal["dataset", "imagenet"] | tuple[str, ...] = "dataset"
    """The dataset's own prompts, the 80 of CLIP's ImageNet evaluation, or a list with `{}` for the name."""
    renormalise: bool = True
    """Scale each class's mean embedding to length 1. The reference does not (spec: B17), so that the logit
    scale depends on the class."""

    def label(self) -> str:
        """A short name for addresses."""
        kind = self.templates if isinstance(self.templates, str) else digest_json(list(self.templates))[:6]
        return kind if self.renormalise else f"{kind}-raw"


class ClassifierConfig(Config):
    prompts: Prompts
    dataset: DatasetConfig
    backbone: BackboneConfig


def _key_config(config: ClassifierConfig) -> dict[str, Any]:
    # Class names are part of the identity of `images`; the hook has no say in the text tower.
    return {
        "templates": _templates(config),
        "renormalise": config.prompts.renormalise,
        "precision": config.backbone.extract.precision,
    }


def _templates(config: ClassifierConfig) -> list[str]:
    match config.prompts.templates:
        case "dataset":
            return config.dataset.templates()
        case "imagenet":
            from open_clip import OPENAI_IMAGENET_TEMPLATES

            return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
        case templates:
            return list(templates)


def class_embeddings(encode_text: Any, names: list[str], templates: list[str], renormalise: bool) -> Tensor:
    """Mean over templates of unit text features: [C, E]; rescaled to unit length if `renormalise`."""
    texts = [template.format(name.replace("_", " ")) for name in names for template in templates]
    features = torch.cat(
        [encode_text(texts[i : i + _TEXTS_PER_BATCH]) for i in range(0, len(texts), _TEXTS_PER_BATCH)]
    )
    unit = torch.nn.functional.normalize(features, dim=-1)
    mean = unit.view(len(names), len(templates), -1).mean(dim=1)
    return torch.nn.functional.normalize(mean, dim=-1) if renormalise else mean


def _run(config: ClassifierConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    backbone = load_backbone(config.backbone, inputs["weights"], runtime.device)
    names = tables.of(inputs["images"], "classes").select("class_name").collect()["class_name"].to_list()
    with torch.inference_mode():
        weights = class_embeddings(
            backbone.encode_text, names, _templates(config), config.prompts.renormalise
        )
    scale = torch.tensor(backbone.logit_scale)
    out.write(FILE, save({"weights": weights.cpu().contiguous(), "logit_scale": scale}))
    return {"n_classes": len(names), "n_templates": len(_templates(config))}


def load_classifier(artifact: Artifact, device: str = "cpu") -> tuple[Tensor, float]:
    """Class embeddings [C, E] and the factor on cosines."""
    tensors = load_file(artifact.path / FILE)
    return tensors["weights"].to(device), float(tensors["logit_scale"])


STAGE = Stage("classifier", 1, _run, key_config=_key_config)
