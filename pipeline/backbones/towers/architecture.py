"""What open_clip's description of an architecture tells of a model, before there are weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from patchsae.pipeline.backbones.backbone import ExtractConfig, Outline, resolve_block
from patchsae.pipeline.backbones.towers.clip import cannot_cut
from patchsae.pipeline.backbones.towers.make import outline_model, tower_of
from patchsae.pipeline.backbones.towers.shapes import Shapes, is_plain, pair, plain_shapes, shapes_of
from patchsae.storage.keys import canonical_json
from patchsae.storage.tokens import TokenLayout


def outline_of(architecture: Mapping[str, Any], extract: ExtractConfig, name: str) -> Outline:
    """The outline of the model that open_clip builds from `architecture` (one of its JSON files).

    open_clip is imported only for models that are not `is_plain`. Raises UserError if the image tower cannot
    be cut, or has no block `extract.hook_block`.
    """
    vision = architecture["vision_cfg"]
    if isinstance(vision.get("layers"), list):
        raise cannot_cut(name, "ModifiedResNet")
    image_size = pair(vision.get("image_size", 224))
    if is_plain(architecture):
        rows, columns = pair(vision.get("patch_size", 16))
        layout = TokenLayout(1, (image_size[0] // rows, image_size[1] // columns))
        n_blocks, width = vision.get("layers", 12), vision.get("width", 768)
        shapes = plain_shapes(architecture)
    else:
        n_blocks, width, layout, shapes = _of_open_clip(canonical_json(architecture), name)
    resolve_block(extract.hook_block, n_blocks)
    return Outline(n_blocks, width, layout, image_size, shapes)


@lru_cache(maxsize=16)
def _of_open_clip(described: str, name: str) -> tuple[int, int, TokenLayout, Shapes]:
    """(blocks, width, layout, shapes) of the model that open_clip makes, without memory for its weights.

    `described` is the architecture as JSON. A model of many blocks takes a second, and a plan, loading and whoever
    asks for its size each need the outline.
    """
    model = outline_model(json.loads(described))
    tower = tower_of(model.visual)
    layout = tower.layout_of(model.visual, name)
    blocks, width = tower.blocks_of(model.visual)
    return len(blocks), width, layout, shapes_of(model.state_dict())
