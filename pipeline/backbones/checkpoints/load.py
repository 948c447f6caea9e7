"""Copies a checkpoint into a model, as open_clip's `load_checkpoint` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from patchsae.pipeline.backbones.checkpoints.convert import to_open_clip
from patchsae.pipeline.backbones.checkpoints.fit import DROPPED, SCALARS
from patchsae.pipeline.backbones.checkpoints.read import is_big_vision, read_state


def load_into(model: Any, path: Path, where: str) -> None:
    """Copies every tensor of the file into the model. Each is read from the file as it is copied.

    open_clip's own function has the whole file in memory beside the model, and cannot read TorchScript
    archives without executing them. Raises UserError if the file cannot be read, or what open_clip and torch
    raise if it does not fit.
    """
    from open_clip.convert import convert_state_dict, load_big_vision_weights
    from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed

    if is_big_vision(path):
        load_big_vision_weights(model, str(path))
        return
    state = convert_state_dict(model, to_open_clip(read_state(path), where))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in SCALARS:
        expected = getattr(model, name)
        if name in state and expected is not None:
            state[name] = state[name].reshape(expected.shape)
    if model.logit_bias is not None and "logit_bias" not in state:
        state["logit_bias"] = torch.zeros_like(model.logit_bias)
    for name in DROPPED:
        state.pop(name, None)
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    model.load_state_dict(state, strict=True)
