"""Checked reading of other tools' files, which every module of this folder uses.

A tensor whose name, shape or values are not what its format requires raises a UserError that says so.

Shapes: d channels, S latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from patchsae.pipeline.core.tensors import BROKEN, check_archive, check_dense
from patchsae.pipeline.saes.sae import Sae
from patchsae.storage.errors import UserError
from patchsae.storage.keys import parse_json

_LARGEST = 10**9 - 1
"""The largest whole number of a setting; torch has none of over 64 bits."""
Layout = Mapping[str, str]
"""A tensor's name -> its axes, as in `{"encoder.weight": "Sd", "encoder.bias": "S", "k": ""}`."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds a mapping. Raises UserError if it is missing or holds something else."""
    try:
        found = parse_json(path.read_bytes())
    except OSError as error:
        raise missing(path, error) from None
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error}); get the file again.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no mapping of settings; get the file again.")
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads every tensor of a safetensors file. Raises UserError if the file is missing or not readable."""
    try:
        return load_file(path)
    except OSError as error:
        raise missing(path, error) from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); get it again.") from None


def read_state(source: Path | BinaryIO, where: str, device: str = "cpu") -> dict[str, Any]:
    """Reads a state dict that `torch.save` wrote, onto a device. Nothing in the file is executed.

    The device `meta` gives tensors that have shapes and no values.

    Raises UserError, naming `where`, if the file is missing or holds anything but weights.
    """
    try:
        check_archive(source, where)
        found = torch.load(source, map_location=device, weights_only=True)
    except OSError as error:
        raise missing(Path(where), error) from None
    except BROKEN:
        raise UserError(
            f"{where}: not a file of weights alone as torch.save writes it; nothing in it was executed, save "
            "the state dict again."
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"{where}: holds a {type(found).__name__}, not a state dict; save that instead.")
    return found


def missing(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror}); check the path and what the folder holds.")


def check(
    tensors: Mapping[str, Any], layout: Layout, where: str, optional: Layout | None = None
) -> dict[str, Tensor]:
    """The tensors of `layout`, and those of `optional` that are present, in float32.

    Raises UserError, naming `where`, if a tensor is missing, unexpected, of the wrong shape or not finite.
    """
    expected = {**layout, **(optional or {})}
    for name in layout:
        if name not in tensors:
            raise UserError(f"{where}: has no tensor `{name}`; this format has {', '.join(layout)}.")
    for name in sorted(tensors.keys() - expected.keys(), key=str):
        raise UserError(
            f"{where}: has a tensor `{name}`, which this format does not know; it has {', '.join(expected)}."
        )
    sizes: dict[str, int] = {}
    checked = {}
    for name, tensor in tensors.items():
        axes = expected[name]
        shape = tuple(check_dense(tensor, name, where).shape) if isinstance(tensor, Tensor) else None
        if shape is None or len(shape) != len(axes):
            raise UserError(f"{where}: `{name}` is {shape or 'no tensor'}; it has the axes {_legend(axes)}.")
        for axis, size in zip(axes, shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise UserError(
                    f"{where}: `{name}` is {shape}, but {axis} is {sizes[axis]} in the other tensors; "
                    f"it has the axes {_legend(axes)}."
                )
        checked[name] = tensor.detach().float()
        if not torch.isfinite(checked[name]).all():
            raise UserError(f"{where}: `{name}` holds values that are not finite; train that SAE again.")
    return checked


def _legend(axes: str) -> str:
    words = {"d": "d channels", "S": "S latents"}
    return " x ".join(words.get(axis, axis) for axis in axes) or "of a single number"


def integer(value: Any, name: str, where: str) -> int:
    """A setting as a whole number. Raises UserError if it is not one."""
    number = value.item() if isinstance(value, Tensor) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or number % 1 != 0:
        raise UserError(f"{where}: `{name}` is {number!r}; only a whole number can be used.")
    if abs(number) > _LARGEST:
        raise UserError(f"{where}: `{name}` has more than {len(str(_LARGEST))} digits; check what it counts.")
    return int(number)


def plain_activation(sae: Sae, format_name: str) -> str:
    """`relu`, `jump_relu` or `top_k`.

    Raises UserError if the SAE has both k and thresholds, as no other tool's has.
    """
    if sae.k is not None and sae.threshold is not None:
        raise UserError(
            f"--format {format_name}: the SAE has both k and thresholds, which the format has no place for."
        )
    return sae.activation
