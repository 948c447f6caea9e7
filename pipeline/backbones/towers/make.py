"""Makes open_clip's models from their descriptions, with random weights or, to look at their shapes, with none.

`tower_of` says which class cuts the image tower of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from patchsae.pipeline.backbones.towers.clip import CutClip


def make_model(architecture: Mapping[str, Any], text_folder: Path | None = None) -> Any:
    """open_clip's model with random weights. Nothing is fetched, unless its text tower is one of `transformers`.

    Such a text tower is described by a file `config.json`, which is that in `text_folder` if there is one.
    """
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    settings = deepcopy(dict(architecture))
    vision, text = settings["vision_cfg"], settings["text_cfg"]
    vision.pop("timm_model_pretrained", None)
    text.pop("hf_model_pretrained", None)
    has_text_tower = "hf_model_name" in text
    if has_text_tower:
        text["hf_model_pretrained"] = False
        text["hf_model_name"] = str(text_folder or text["hf_model_name"])
    custom = settings.pop("custom_text", False) or has_text_tower
    kind = (CoCa if "multimodal_cfg" in settings else CustomTextCLIP) if custom else CLIP
    return kind(**settings)


def outline_model(architecture: Mapping[str, Any]) -> Any:
    """The model without memory for its weights (on torch's device `meta`).

    A text tower of `transformers` is left out, since its description would have to be fetched. Then the result
    is an image tower alone, as the attribute `visual` of a module.
    """
    from open_clip.model import _build_vision_tower

    with torch.device("meta"):
        if "hf_model_name" not in architecture["text_cfg"]:
            return make_model(architecture)
        model = torch.nn.Module()
        vision = {**architecture["vision_cfg"], "timm_model_pretrained": False}
        quick_gelu = architecture.get("quick_gelu", False)
        model.visual = _build_vision_tower(architecture["embed_dim"], vision, quick_gelu)
        return model


def tower_of(visual: Any) -> type[CutClip]:
    """What cuts the image tower of a model that `make_model` or `outline_model` made."""
    from patchsae.pipeline.backbones.towers.timm_vit import TimmVit
    from patchsae.pipeline.backbones.towers.vit import ClipVit

    return TimmVit if hasattr(visual, "trunk") else ClipVit
