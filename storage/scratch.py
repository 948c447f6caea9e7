"""Scratch arrays, in which finished parts keep their results until the artifact is committed.

They lie in small safetensors files in one folder of the artifact, which is deleted when it is committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from patchsae.storage.atomic import write_atomic

FOLDER = "parts"


def file_of(root: Path, name: str, part: int) -> Path:
    """The file with the arrays `name` of a part; `root` is the artifact's folder."""
    return root / FOLDER / f"{name}-{part:06d}.safetensors"


def write(root: Path, name: str, part: int, arrays: Mapping[str, np.ndarray]) -> Path:
    """Writes arrays atomically and returns their file, which the ledger needs."""
    path = file_of(root, name, part)
    write_atomic(path, save({key: np.ascontiguousarray(value) for key, value in arrays.items()}))
    return path


class ScratchArrays:
    """The arrays of one file by name, each read when it is asked for.

    The file is opened anew for each array and closed again, since there may be thousands of files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def _open(self) -> Any:
        return safe_open(self._path, framework="numpy")

    def __getitem__(self, key: str) -> np.ndarray:
        with self._open() as file:
            return np.asarray(file.get_tensor(key))

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """The rows `start` to `stop` (`start < stop`) of an array; the other rows are not read."""
        with self._open() as file:
            return np.asarray(file.get_slice(key)[start:stop])
