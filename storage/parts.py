"""Scratch arrays of a stage's parts: small safetensors files, deleted once the artifact is committed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from storage.artifacts import PARTS, Builder
from storage.atomic import write_atomic


def path_of(out: Builder, name: str, part: int) -> Path:
    """Where the arrays `name` of one part are."""
    return out.path / PARTS / f"{name}-{part:06d}.safetensors"


def write(out: Builder, name: str, part: int, arrays: Mapping[str, np.ndarray]) -> Path:
    """Writes arrays atomically and returns the file, for the ledger."""
    path = path_of(out, name, part)
    write_atomic(path, save({key: np.ascontiguousarray(value) for key, value in arrays.items()}))
    return path


class PartArrays:
    """The arrays of one part, read when they are asked for."""

    def __init__(self, out: Builder, name: str, part: int) -> None:
        self._file: Any = safe_open(path_of(out, name, part), framework="numpy")

    def __getitem__(self, key: str) -> np.ndarray:
        return np.asarray(self._file.get_tensor(key))

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Some rows of an array (`start < stop`), without reading the others."""
        return np.asarray(self._file.get_slice(key)[start:stop])
