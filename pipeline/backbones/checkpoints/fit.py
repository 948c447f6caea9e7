"""Compares the names and shapes of a checkpoint with those of its model, and looks for the model it is of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from patchsae.pipeline.backbones.towers.shapes import Shapes, shapes_of
from patchsae.storage.errors import UserError

_TEXT = "text."
DROPPED = ("text.transformer.embeddings.position_ids",)
"""Tensors of earlier versions of transformers, which `load_into` drops."""
SCALARS = ("logit_scale", "logit_bias")
"""Tensors that `load_into` reshapes: some files have them with one dimension, others with none."""
_POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")


def check_fit(
    header: Mapping[str, Tensor], expected: Shapes, name: str, where: str, models: Callable[[], list[str]]
) -> None:
    """Raises UserError, naming `where`, unless open_clip can load the checkpoint into the model `name`.

    `expected` has the shapes of the whole model, or of its image tower alone. `models` finds the models that
    the checkpoint fits exactly.
    """
    faults = list(_faults(header, expected, exactly=False))
    if not faults:
        return
    fitting = models()
    remedy = (
        f"it fits {_list(fitting)}: give that as `model`" if fitting else "give a checkpoint of this model"
    )
    raise UserError(f"{where}: does not load as {name} ({'; '.join(faults)}); {remedy}.")


def fits_exactly(header: Mapping[str, Tensor], expected: Shapes) -> bool:
    """Whether the checkpoint has these tensors and no others, without resizing of positions."""
    return not any(_faults(header, expected, exactly=True))


def _faults(header: Mapping[str, Tensor], expected: Shapes, exactly: bool) -> Iterator[str]:
    """What differs, in up to three phrases."""
    found = _as_loaded(header, expected)
    if "logit_scale" not in expected:
        found = {name: shape for name, shape in found.items() if name.startswith("visual.")}
    both = [name for name in found if name in expected]
    other = [name for name in both if not _same(name, found[name], expected[name], exactly)]
    missing = [name for name in expected if name not in found and name != "logit_bias"]
    unknown = [name for name in found if name not in expected]
    if other:
        name = next((name for name in other if name.startswith("visual.")), other[0])
        shapes = f"`{name}` is {found[name]}, not {expected[name]}"
        yield f"tensors of another shape: {len(other)} of {len(expected)}, such as {shapes}"
    if missing:
        yield f"tensors that it lacks: {len(missing)} of {len(expected)}, such as `{missing[0]}`"
    if unknown:
        yield f"tensors that the model has not: {len(unknown)}, such as `{unknown[0]}`"


def _as_loaded(header: Mapping[str, Tensor], expected: Shapes) -> Shapes:
    """Name -> shape as open_clip will load it: checkpoints from before `text` was a module get its prefix."""
    shapes = {name: shape for name, shape in shapes_of(header).items() if name not in DROPPED}
    if "positional_embedding" not in shapes or "text.positional_embedding" not in expected:
        return shapes
    of_text = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
    return {(_TEXT if name.startswith(of_text) else "") + name: shape for name, shape in shapes.items()}


def _same(name: str, found: tuple[int, ...], expected: tuple[int, ...], exactly: bool) -> bool:
    if found == expected:
        return True
    if name in SCALARS:
        return set(found) | set(expected) <= {1}
    if exactly or name not in _POSITIONS or len(found) != 2:
        return False
    # open_clip interpolates positions of another number. Those of an image are a square, after the class token.
    is_square = name != "visual.positional_embedding" or round((found[0] - 1) ** 0.5) ** 2 == found[0] - 1
    return found[1] == expected[1] and is_square


def _list(names: list[str]) -> str:
    return " or ".join(names[:4])


def similar(header: Mapping[str, Tensor], architecture: Mapping[str, Any]) -> bool:
    """Whether the model could be that of the checkpoint, by the kind of its towers and the words it knows.

    It spares working out the shapes of most models.
    """
    text = architecture["text_cfg"]
    words = header.get("token_embedding.weight", header.get("text.token_embedding.weight"))
    if words is None or "hf_model_name" in text:
        return words is None and "hf_model_name" in text
    for prefix, described in (
        ("visual.trunk.", "timm_model_name" in architecture["vision_cfg"]),
        ("text_decoder.", "multimodal_cfg" in architecture),
    ):
        if any(name.startswith(prefix) for name in header) != described:
            return False
    expected = (text.get("vocab_size", 49408), text.get("width", 512))
    return tuple(words.shape) == expected and f"resblocks.{text.get('layers', 12) - 1}." in " ".join(header)
