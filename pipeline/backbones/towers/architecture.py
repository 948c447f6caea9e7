"""What open_clip's description of an architecture tells of the image tower, without importing open_clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchsae.pipeline.backbones.backbone import ExtractConfig, Outline, resolve_block
from patchsae.storage.errors import UserError
from patchsae.storage.tokens import TokenLayout


def outline_of(architecture: Mapping[str, Any], extract: ExtractConfig, name: str) -> Outline:
    """The outline of the model that open_clip builds from `architecture` (one of its JSON files).

    Raises UserError if its image tower cannot be cut, or has no block `extract.hook_block`.
    """
    vision = architecture["vision_cfg"]
    if "timm_model_name" in vision:
        raise cannot_cut(name, "TimmModel")
    n_blocks = vision.get("layers", 12)
    if not isinstance(n_blocks, int):
        raise cannot_cut(name, "ModifiedResNet")
    resolve_block(extract.hook_block, n_blocks)
    image_size, patch_size = _pair(vision.get("image_size", 224)), _pair(vision.get("patch_size", 16))
    grid = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
    return Outline(n_blocks, vision.get("width", 768), TokenLayout(1, grid), image_size)


def cannot_cut(name: str, tower: str) -> UserError:
    """The error for a model whose image tower, of the class `tower`, has no blocks to cut it at."""
    return UserError(
        f"backbone {name}: its image tower is a {tower}, and only open_clip's own ViTs can be cut at a block; "
        "choose a model such as ViT-B-16."
    )


def _pair(size: int | list[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
