"""How images become the input of open_clip's models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.backbones.towers.shapes import is_plain, pair
from patchsae.pipeline.core.open_clip_data import (
    default_preprocessing,
    model_config,
    pretrained_tag,
    pretrained_tags,
)

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
from patchsae.storage.errors import UserError


def preprocessing_of(
    architecture: Mapping[str, Any], model: str, tag: str | None, image_size: tuple[int, int]
) -> tuple[Callable[[Image.Image], Tensor], dict[str, Any]]:
    """open_clip's evaluation transform for published weights, and its settings.

    Without a tag, CLIP's own. For models that are no plain CLIP, such as SigLIP and CLIPA, it is that of their
    published weights, where all of these have the same.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2

    settings = {**_published(architecture, model, tag), "size": image_size}
    return image_transform_v2(PreprocessCfg(**settings), is_train=False), settings


def published_framing(model: str, tag: str | None) -> Framing:
    """The framing of the images of a model that `preprocessing_of` preprocesses.

    Raises UserError if open_clip does not know the model, as one of a later version.
    """
    architecture = model_config(model)
    if not architecture:
        raise UserError(
            f"model {model}: this version of open_clip does not know it; install the one it was run with."
        )
    image_size = pair(architecture["vision_cfg"].get("image_size", 224))
    return Framing.of({**_published(architecture, model, tag), "size": image_size})


def _published(architecture: Mapping[str, Any], model: str, tag: str | None) -> dict[str, Any]:
    """The settings of published weights, but for the size."""

    def of(one: str) -> dict[str, Any]:
        default = default_preprocessing()
        found = pretrained_tag(model, one)
        return default | {name: found[name] for name in default if found.get(name) is not None}

    if tag is not None:
        return of(tag)
    published = [of(one) for one in pretrained_tags(model)]
    has_its_own = not is_plain(architecture) or "hf_tokenizer_name" in architecture["text_cfg"]
    agree = bool(published) and all(one == published[0] for one in published)
    return published[0] if has_its_own and agree else default_preprocessing()
