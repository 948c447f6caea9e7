"""Stage `features`: image features of the images that adapters learn from, so that no step needs the image tower.

CoOp and the linear probe leave the image tower as it is. With a number of `views` they train from these features.

Shapes: n drawn images, V views (1 for the whole image), E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from patchsae.pipeline.adapters.adapter import unit_features
from patchsae.pipeline.adapters.views import View, Views
from patchsae.pipeline.backbones.backbone import BackboneConfig, resolve_block
from patchsae.pipeline.backbones.effort import image_amounts, load_amounts
from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.core.config import Config, Unhashed
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.stage import Inputs, PartStage, Runtime, Within
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.few_shot import rows_of_draw
from patchsae.pipeline.images.indexed import indexed_images
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.manifest import Summary
from patchsae.storage.scratch import ScratchArrays

FILE = "features.safetensors"
_IMAGES_PER_PART = 64
_IMAGES_PER_PASS = 16


class FeaturesConfig(Config):
    """Which views of the drawn images. The draw and the weights are inputs."""

    views: int
    """Number of random views; 0 stands for the whole image."""
    seed: int
    precision: Literal["float32", "bfloat16"]
    dataset: Annotated[DatasetConfig, Unhashed("its images are an input")]
    backbone: Annotated[BackboneConfig, Unhashed("its weights are an input; features have no hook")]

    def numbers(self) -> list[View]:
        return list(range(self.views)) if self.views else [None]


def _prepare(config: FeaturesConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> int:
    return -(-len(rows_of_draw(inputs["few_shot"])) // _IMAGES_PER_PART)


class _Worker:
    """Computes the features of all views of a part's images."""

    def __init__(self, config: FeaturesConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> None:
        self.config = config
        self.rows = rows_of_draw(inputs["few_shot"]).tolist()
        self.backbone = load_backbone(config.backbone, inputs, runtime.device, runtime.reporter)
        images = indexed_images(config.dataset, inputs["images"], self.backbone.preprocess)
        self.views = Views(images, self.backbone.image_size, config.seed)

    @torch.inference_mode()
    def __call__(self, part: int, within: Within) -> Mapping[str, np.ndarray]:
        rows = self.rows[part * _IMAGES_PER_PART : (part + 1) * _IMAGES_PER_PART]
        items = [(row, view) for row in rows for view in self.config.numbers()]
        found = []
        for start in range(0, len(items), _IMAGES_PER_PASS):
            pixels = torch.stack([self.views[item] for item in items[start : start + _IMAGES_PER_PASS]])
            found.append(unit_features(self.backbone, pixels).cpu())
            within(min(start + _IMAGES_PER_PASS, len(items)), len(items), "views")
        features = torch.cat(found)
        return {"features": features.view(len(rows), -1, features.shape[1]).numpy()}


def _merge(
    config: FeaturesConfig, inputs: Inputs, out: Builder, parts: Sequence[ScratchArrays], runtime: Runtime
) -> Summary:
    features = np.concatenate([arrays["features"] for arrays in parts])
    out.write(FILE, save({"features": torch.from_numpy(features)}))
    return {"n_images": features.shape[0], "n_views": features.shape[1]}


def load_features(artifact: Artifact) -> Tensor:
    """The features of the drawn images in the order of the draw, float32 [n, V, E], of length 1."""
    return load(artifact.read(FILE))["features"]


def _predict(config: FeaturesConfig, inputs: Upstreams) -> Prediction:
    n_images, width = inputs["few_shot"].fact("n_images"), inputs["weights"].fact("width")
    if n_images is None or width is None:
        return Prediction()
    n_views = n_images * len(config.numbers())
    n_bytes = MANIFEST_BYTES + 200 + 4 * n_views * width * 3 // 4
    outline = config.backbone.outline()
    is_whole = resolve_block(config.backbone.extract.hook_block, outline.n_blocks) == outline.n_blocks - 1
    passes = image_amounts(config.backbone, inputs["weights"], n_views, heads=True)
    rest = None if is_whole else image_amounts(config.backbone, inputs["weights"], n_views)
    effort = [*load_amounts(inputs["weights"]), *(passes or []), *(rest or [])]
    return Prediction({"n_images": n_images}, n_bytes, n_bytes, effort)


STAGE = PartStage(
    name="features",
    version=1,
    section="adapters",
    description="Image features that adapters learn from.",
    prepare=_prepare,
    worker=_Worker,
    merge=_merge,
    predict=_predict,
)
