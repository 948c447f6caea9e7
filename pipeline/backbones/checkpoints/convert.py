"""Renames the tensors of checkpoints that other packages wrote to open_clip's names.

The tensors may be without memory (torch's device `meta`), so that a header is converted as its file is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from patchsae.storage.errors import UserError

_CLIP = "vision_model.embeddings.class_embedding"
_SIGLIP = "vision_model.head.probe"

_TOWERS = {"vision_model": "visual.", "text_model": ""}
_ENDS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    # transformers misspells it.
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
}
_IN_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def is_of_transformers(state: Mapping[str, Tensor]) -> bool:
    """Whether it is the state dict of a `CLIPModel` of transformers."""
    return _CLIP in state


def to_open_clip(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The state dict with open_clip's names; itself if it is not of transformers.

    Raises UserError, naming `where`, for a `SiglipModel`, whose tower has other tensors than open_clip's.
    """
    if _SIGLIP in state:
        raise UserError(
            f"{where}: is a SiglipModel of transformers, whose tensors are not those of open_clip's SigLIP; get "
            "open_clip's file of the same model (open_clip_model.safetensors)."
        )
    if not is_of_transformers(state):
        return dict(state)
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tower, _, rest = name.partition(".")
        if name.endswith("position_ids"):
            continue
        if tower not in _TOWERS:
            converted |= _whole(name, tensor)
        elif block := _BLOCK.fullmatch(rest):
            number, part, kind = block.groups()
            prefix = f"{_TOWERS[tower]}transformer.resblocks.{number}."
            if part in _IN_BLOCK:
                converted[f"{prefix}{_IN_BLOCK[part]}.{kind}"] = tensor
            elif part == "self_attn.q_proj":
                # open_clip has the projections of queries, keys and values as one.
                all_three = [state[name.replace("q_proj", one)] for one in ("q_proj", "k_proj", "v_proj")]
                converted[f"{prefix}attn.in_proj_{kind}"] = torch.cat(all_three)
            elif part not in ("self_attn.k_proj", "self_attn.v_proj"):
                converted[name] = tensor
        else:
            start, _, kind = rest.rpartition(".")
            if rest in _ENDS:
                converted[_TOWERS[tower] + _ENDS[rest]] = tensor
            else:
                converted[_TOWERS[tower] + f"{_ENDS[start]}.{kind}" if start in _ENDS else name] = tensor
    return converted


def _whole(name: str, tensor: Tensor) -> dict[str, Tensor]:
    projections = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
    return {projections[name]: tensor.T} if name in projections else {name: tensor}
