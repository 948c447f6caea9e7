"""Backbone `shapes_clip`: ShapesCLIP, the small CLIP that comes with the package and that the demo uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig, Outline
from patchsae.pipeline.backbones.towers.architecture import outline_of
from patchsae.pipeline.backbones.towers.clip import prompts_of
from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.core.stage import Inputs
from patchsae.pipeline.shapes import clip as shapes_clip
from patchsae.storage.keys import digest_file, digest_json


class ShapesClipConfig(BackboneConfig):
    """ShapesCLIP, a small CLIP that comes with the package. It was trained on the split `pretrain` of the
    shapes world; see `pipeline/shapes/clip/training.json`."""

    kind: Literal["shapes_clip"] = "shapes_clip"

    def fingerprint(self) -> str:
        return digest_json([digest_file(path) for path in shapes_clip.files()])

    def build(self, inputs: Inputs) -> Backbone:
        from patchsae.pipeline.backbones.towers.vit import ClipVit

        model, preprocess, tokenizer = shapes_clip.load()
        settings = {"preprocess": shapes_clip.config()["preprocess_cfg"], "vocabulary": list(tokenizer.words)}
        return ClipVit(model, preprocess, tokenizer, self.extract, "shapes_clip", settings)

    def outline(self) -> Outline:
        return outline_of(shapes_clip.config()["model_cfg"], self.extract, "shapes_clip")

    def framing(self) -> Framing:
        return Framing.of(shapes_clip.config()["preprocess_cfg"])

    def check_classes(self, names: Sequence[str], templates: Sequence[str]) -> None:
        shapes_clip.tokenizer().check(prompts_of(names, templates))
