"""Small CLIPs with random weights, as backbones."""

from __future__ import annotations

import copy
from functools import lru_cache
from typing import Any

import open_clip
import torch

from patchsae.pipeline.backbones.backbone import ExtractConfig
from patchsae.pipeline.backbones.towers.make import make_model
from patchsae.pipeline.backbones.towers.vit import ClipVit

ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 3},
}


def random_clip(extract: ExtractConfig | None = None, **text: Any) -> ClipVit:
    """A CLIP of 4 image blocks and 3 text blocks, on the CPU. `text` are settings of its text tower.

    All have the same weights, and none shares them with another.
    """
    model = copy.deepcopy(_model(tuple(text.items())))
    clip = ClipVit(model, torch.nn.Identity(), _tokenizer(), extract or ExtractConfig(), "random", {})
    return clip.to("cpu")


@lru_cache
def _tokenizer() -> Any:
    return open_clip.tokenizer.SimpleTokenizer(context_length=ARCHITECTURE["text_cfg"]["context_length"])


@lru_cache
def _model(text: tuple[tuple[str, Any], ...]) -> Any:
    torch.manual_seed(0)
    model = make_model({**ARCHITECTURE, "text_cfg": {**ARCHITECTURE["text_cfg"], **dict(text)}})
    with torch.no_grad():
        # open_clip's initial norms are all 1, and would hide one that is left out.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(2.0)
    return model
