"""Reads the tensors of a TorchScript archive, without torch.jit and without executing its code.

Such an archive is a zip file. `data.pkl` in it is a pickle of the module's attributes, whose classes are named
`__torch__...`, and `data/N` are the bytes of its tensors. Nothing else than such classes, tensors, and dictionaries
is read.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from torch import Tensor

from patchsae.pipeline.backbones.checkpoints.archive import load_archive

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's models have as buffers."""


def is_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive. torch.save writes no `constants.pkl`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of the module by their names, mapped into memory.

    Raises an error of `pipeline.core.tensors.BROKEN`, or OSError, if it is not such an archive.
    """
    module = load_archive(path, _stand_in)
    state = dict(_named(module, "", set()))
    for name in _NOT_WEIGHTS:
        state.pop(name, None)
    return state


def _stand_in(module: str, name: str) -> Any:
    if module.startswith("__torch__"):
        return _Module
    if module == "torch.jit._pickle":
        # Functions that tag a list or a dictionary with the type of its elements.
        return lambda value, *_: value
    return None


class _Module:
    """Stands for any TorchScript class: takes the attributes that the pickle has for it."""

    def __setstate__(self, attributes: Any) -> None:
        self.attributes = attributes if isinstance(attributes, dict) else {}


def _named(module: Any, prefix: str, seen: set[int]) -> list[tuple[str, Tensor]]:
    """The tensors of a module and of the modules in it, with the names of a state dict. Each module counts once."""
    seen.add(id(module))
    found: list[tuple[str, Tensor]] = []
    for name, value in getattr(module, "attributes", {}).items():
        if isinstance(value, Tensor):
            found.append((prefix + name, value))
        elif isinstance(value, _Module) and id(value) not in seen:
            found += _named(value, f"{prefix}{name}.", seen)
    return found
