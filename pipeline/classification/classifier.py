"""Stage `classifier`: class embeddings from prompts, which `pipeline.classification.zero_shot` reads.

Shapes: E embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import field_validator
from safetensors.torch import load, save
from torch import Tensor

from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.backbones.effort import load_amounts, text_amounts
from patchsae.pipeline.backbones.weights import bars_of, load_backbone
from patchsae.pipeline.core.config import Config, HashedUnless, Unhashed
from patchsae.pipeline.core.open_clip_data import imagenet_templates
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
from patchsae.pipeline.images.attributes import attribute_values_of
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.tables import class_names_of, expected_classes
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.keys import digest_json
from patchsae.storage.manifest import Summary

FILE = "classifier.safetensors"
# So many texts are encoded by a small backbone within two seconds.
_FEW_TEXTS = 500


class Prompts(Config):
    """How class names become texts, and texts become class embeddings."""

    templates: Literal["dataset", "imagenet"] | tuple[str, ...] = "dataset"
    """`dataset`: the templates of the dataset. `imagenet`: the 80 of CLIP's ImageNet evaluation. Or a list of
    texts with `{}` in place of the class name."""
    renormalise: bool = True
    """Whether each class's mean embedding is scaled to length 1. The paper's released code does not scale it
    (spec B17), so that its logit scale depends on the class."""

    @field_validator("templates")
    @classmethod
    def _for_one_name(cls, templates: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for template in templates if isinstance(templates, tuple) else ():
            try:
                template.format("name")
            except (ValueError, LookupError):
                raise ValueError(f"`{template}` must have `{{}}` in place of the class name") from None
        return templates

    def label(self) -> str:
        """A short name of these settings, for the address of a classifier."""
        kind = self.templates if isinstance(self.templates, str) else digest_json(list(self.templates))[:6]
        return kind if self.renormalise else f"{kind}-raw"

    def resolved(self, dataset: DatasetConfig) -> tuple[str, ...]:
        """The list of templates that `templates` stands for."""
        match self.templates:
            case "dataset":
                return tuple(dataset.templates())
            case "imagenet":
                return tuple(imagenet_templates())
            case templates:
                return templates


class ClassifierConfig(Config):
    """The config of the stage. Class names are not in it: the identity of the images covers them."""

    templates: tuple[str, ...]
    renormalise: bool
    precision: Literal["float32", "bfloat16"]
    backbone: Annotated[BackboneConfig, Unhashed("its weights are an input; the text tower has no hook")]
    attribute: Annotated[str | None, HashedUnless(None)] = None
    """The attribute whose values are told apart, with the prompts that the dataset has for it; if not given, the
    classes."""

    @classmethod
    def of(
        cls,
        prompts: Prompts,
        dataset: DatasetConfig,
        backbone: BackboneConfig,
        attribute: str | None = None,
    ) -> ClassifierConfig:
        own = prompts.resolved(dataset) if attribute is None else tuple(dataset.attributes()[attribute])
        return cls(
            templates=own,
            renormalise=prompts.renormalise,
            precision=backbone.extract.precision,
            backbone=backbone,
            attribute=attribute,
        )


def _run(config: ClassifierConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    backbone = load_backbone(config.backbone, inputs, runtime.device, runtime.reporter)
    if config.attribute is None:
        names = class_names_of(inputs["images"])
    else:
        names = attribute_values_of(inputs["attributes"], config.attribute)
    n_texts = len(names) * len(config.templates)
    bars = runtime.reporter if n_texts > _FEW_TEXTS else bars_of(config.backbone, runtime.reporter)
    with bars.bar("classifier", n_texts, "texts") as bar, torch.inference_mode():
        weights = backbone.class_embeddings(names, config.templates, config.renormalise, bar.advance)
    scale = torch.tensor(backbone.logit_scale)
    out.write(FILE, save({"weights": weights.cpu().contiguous(), "logit_scale": scale}))
    return {"n_classes": len(names), "n_templates": len(config.templates)}


def load_classifier(artifact: Artifact, device: str = "cpu") -> tuple[Tensor, float]:
    """The class embeddings [C, E] and the logit scale, by which cosines are multiplied."""
    tensors = load(artifact.read(FILE))
    return tensors["weights"].to(device), float(tensors["logit_scale"])


def _expected_names(config: ClassifierConfig, inputs: Upstreams) -> Sequence[str] | None:
    """The class names that `_run` will read, as far as they are known before anything is run."""
    if config.attribute is None:
        return expected_classes(inputs["images"])
    if (attributes := inputs["attributes"]).artifact is not None:
        return attribute_values_of(attributes.artifact, config.attribute)
    values: Sequence[str] | None = attributes.fact(f"values of {config.attribute}")
    return values


def _predict(config: ClassifierConfig, inputs: Upstreams) -> Prediction:
    width = inputs["weights"].fact("width")
    names = _expected_names(config, inputs)
    if names is not None:
        config.backbone.check_classes(names, config.templates)
    if names is None or width is None:
        return Prediction()
    n_names = len(names)
    # The embedding of CLIP's models has about as many channels as the image tower, or fewer.
    n_bytes = MANIFEST_BYTES + 200 + 4 * n_names * width * 3 // 4
    effort = [
        *load_amounts(inputs["weights"]),
        *text_amounts(config.backbone, inputs["weights"], n_names * len(config.templates)),
    ]
    return Prediction({"n_classes": n_names}, n_bytes, 0, effort)


STAGE = Stage(
    name="classifier",
    version=1,
    section="evaluations",
    description="Zero-shot classifiers from prompts.",
    run=_run,
    predict=_predict,
)
