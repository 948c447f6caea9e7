"""ShapesCLIP, the small CLIP that is shipped with the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline import shapes_clip
from pipeline.backbones.base import BackboneConfig
from storage.keys import digest_file, digest_json

if TYPE_CHECKING:
    from pipeline.clip_vit import ClipVit


class ShapesClipConfig(BackboneConfig):
    """Trained on the pretraining split of the shapes world; see `pipeline/shapes_clip/training.json`."""

    kind: Literal["shapes_clip"] = "shapes_clip"

    def fingerprint(self) -> str:
        return digest_json([digest_file(path) for path in shapes_clip.files()])

    def build(self) -> ClipVit:
        from pipeline.clip_vit import ClipVit

        model, preprocess, tokenizer = shapes_clip.load()
        settings = {"preprocess": shapes_clip.config()["preprocess_cfg"], "vocabulary": list(tokenizer.words)}
        return ClipVit(model, preprocess, tokenizer, self.extract, "shapes_clip", settings)

    def activation_shape(self) -> tuple[int, int]:
        vision = shapes_clip.config()["model_cfg"]["vision_cfg"]
        return (vision["image_size"] // vision["patch_size"]) ** 2 + 1, vision["width"]
