"""Refuses a checkpoint that is of another model, by what its header shows: names, shapes, and who wrote it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from patchsae.pipeline.backbones.backbone import Outline
from patchsae.pipeline.backbones.checkpoints.convert import to_open_clip
from patchsae.pipeline.backbones.checkpoints.fit import check_fit, fits_exactly, similar
from patchsae.pipeline.backbones.checkpoints.read import (
    State,
    check_arrays,
    file_fingerprint,
    is_big_vision,
    is_openai,
    read_header,
)
from patchsae.pipeline.backbones.towers.make import outline_model
from patchsae.pipeline.backbones.towers.shapes import Shapes, is_plain, plain_shapes, shapes_of
from patchsae.pipeline.core.open_clip_data import model_config, model_names
from patchsae.storage.errors import UserError

_QUICK = "-quickgelu"
# Apple's own files of MobileCLIP, whose names open_clip translates as it loads them.
_MOBILE_CLIP = "image_encoder.model."


@lru_cache(maxsize=32)
def header(path: Path, fingerprint: str) -> State:
    """The names and shapes of the file with that fingerprint, with open_clip's names."""
    return to_open_clip(read_header(path), f"checkpoint {path}")


def models_of(path: Path) -> list[str]:
    """The names of the models that have exactly the tensors of a file; none if its header does not tell.

    Raises UserError if the file cannot be read.
    """
    fingerprint = file_fingerprint(path)
    return [] if is_big_vision(path) else _models_of(header(path, fingerprint))


def check_checkpoint(path: Path, fingerprint: str, model: str, outline: Outline, where: str) -> None:
    """Raises UserError, naming `where`, if the file cannot be read, or is not of the model of that name.

    Shapes in NumPy files of SigLIP and in Apple's of MobileCLIP are not looked at: open_clip translates them as it
    loads.
    """
    if is_big_vision(path):
        check_arrays(path, where)
        return
    found = header(path, fingerprint)
    if any(name.startswith(_MOBILE_CLIP) for name in found):
        return
    check_fit(found, dict(outline.shapes), model, where, lambda: _models_of(found))
    if is_openai(path):
        check_activation(model, True, f"{where}: is a file of OpenAI, whose models compute")
    elif (quick := _activation_beside(path)) is not None:
        check_activation(model, quick, f"{where}: the config.json beside it says that the model computes")


def check_activation(model: str, quick: bool, what: str) -> None:
    """Raises UserError if the model computes GELU and its weights were trained with QuickGELU, or the reverse.

    open_clip only warns, and the features are wrong. `what` begins the sentence. Says nothing if open_clip has
    no such model with the other activation.
    """
    other = model.removesuffix(_QUICK) if model.endswith(_QUICK) else model + _QUICK
    if model_config(model).get("quick_gelu", False) == quick or other not in model_names():
        return
    names = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
    raise UserError(f"{what} {names[0]}, and {model} computes {names[1]}; give `model: {other}`.")


def _activation_beside(path: Path) -> bool | None:
    """Whether the description that transformers writes beside its weights says QuickGELU; None if there is none."""
    described = path.with_name("config.json")
    try:
        config: Any = json.loads(described.read_bytes())
        vision = config["vision_config"]
        return (
            str(vision.get("hidden_act", "quick_gelu")) == "quick_gelu"
            if config["model_type"] == "clip"
            else None
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _models_of(found: State) -> list[str]:
    """The names of the models that have exactly these tensors."""
    names = []
    for name in model_names():
        architecture = model_config(name)
        if similar(found, architecture) and fits_exactly(found, _shapes_of(architecture)):
            names.append(name)
    return names


def _shapes_of(architecture: dict[str, Any]) -> Shapes:
    if is_plain(architecture):
        return plain_shapes(architecture)
    return shapes_of(outline_model(architecture).state_dict())
