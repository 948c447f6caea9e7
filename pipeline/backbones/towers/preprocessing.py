"""How images become the input of open_clip's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from PIL import Image
from torch import Tensor

from patchsae.pipeline.backbones.towers.shapes import is_plain
from patchsae.pipeline.core.open_clip_data import pretrained_tag, pretrained_tags


def preprocessing_of(
    architecture: Mapping[str, Any], model: str, tag: str | None, image_size: tuple[int, int]
) -> tuple[Callable[[Image.Image], Tensor], dict[str, Any]]:
    """open_clip's evaluation transform for published weights, and its settings.

    Without a tag, CLIP's own. For models that are no plain CLIP, such as SigLIP and CLIPA, it is that of their
    published weights, where all of these have the same.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    def of(one: str) -> dict[str, Any]:
        return merge_preprocess_dict(asdict(PreprocessCfg()), pretrained_tag(model, one))

    if tag is not None:
        settings = of(tag)
    else:
        published = [of(one) for one in pretrained_tags(model)]
        has_its_own = not is_plain(architecture) or "hf_tokenizer_name" in architecture["text_cfg"]
        agree = bool(published) and all(one == published[0] for one in published)
        settings = published[0] if has_its_own and agree else asdict(PreprocessCfg())
    settings["size"] = image_size
    return image_transform_v2(PreprocessCfg(**settings), is_train=False), settings
