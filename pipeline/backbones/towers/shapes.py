"""The names and shapes of the tensors of open_clip's own CLIPs, worked out from the description alone.

Importing open_clip takes seconds, and a plan has to compare a checkpoint with its model. So the plain CLIP, which
two thirds of open_clip's models are, is written out here; `tests/pipeline/backbones/test_architectures.py` compares
it with open_clip's for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

_VISION = {
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value", "no_ln_pre",
    "final_ln_after_pool", "pool_type", "output_tokens",
}  # fmt: skip
_TEXT = {
    "context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "width", "heads",
    "layers", "mlp_ratio", "ls_init_value", "eos_id", "no_causal_mask", "pool_type",
}  # fmt: skip
_WHOLE = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}


def is_plain(architecture: Mapping[str, Any]) -> bool:
    """Whether `plain_shapes` knows the model: open_clip's `CLIP` of a ViT, with no setting it does not know."""
    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    known = set(architecture) <= _WHOLE and set(vision) <= _VISION and set(text) <= _TEXT
    return known and isinstance(vision.get("layers", 12), int)


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Name -> shape of the tensors of a state dict."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """A height and width, of which open_clip's files give one if they are equal."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def plain_shapes(architecture: Mapping[str, Any]) -> Shapes:
    """Name -> shape of every tensor in the state dict of a model that `is_plain`."""
    vision, text, embed = architecture["vision_cfg"], architecture["text_cfg"], architecture["embed_dim"]
    width, patch_size = vision.get("width", 768), pair(vision.get("patch_size", 16))
    image_size = pair(vision.get("image_size", 224))
    n_patches = (image_size[0] // patch_size[0]) * (image_size[1] // patch_size[1])
    shapes: Shapes = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (n_patches + 1, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, *patch_size),
        **({} if vision.get("no_ln_pre") else _norm("visual.ln_pre", width)),
        **_blocks("visual.transformer", vision, width),
        **_norm("visual.ln_post", width),
    }
    text_width = text.get("width", 512)
    return shapes | {
        "positional_embedding": (text.get("context_length", 77), text_width),
        "text_projection": (text_width, embed),
        "token_embedding.weight": (text.get("vocab_size", 49408), text_width),
        **_blocks("transformer", text, text_width),
        **_norm("ln_final", text_width),
        "logit_scale": (),
    }


def _blocks(prefix: str, tower: Mapping[str, Any], width: int) -> Shapes:
    inner = int(width * tower.get("mlp_ratio", 4.0))
    shapes: Shapes = {}
    for block in range(tower.get("layers", 12)):
        name = f"{prefix}.resblocks.{block}"
        shapes |= {
            **_norm(f"{name}.ln_1", width),
            f"{name}.attn.in_proj_weight": (3 * width, width),
            f"{name}.attn.in_proj_bias": (3 * width,),
            **_linear(f"{name}.attn.out_proj", width, width),
            **_norm(f"{name}.ln_2", width),
            **_linear(f"{name}.mlp.c_fc", width, inner),
            **_linear(f"{name}.mlp.c_proj", inner, width),
        }
        if tower.get("ls_init_value") is not None:
            shapes |= {f"{name}.ls_1.gamma": (width,), f"{name}.ls_2.gamma": (width,)}
    return shapes


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, n_in: int, n_out: int) -> Shapes:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}
