"""Scratch files, in which an unfinished artifact keeps what its parts have found until it is committed.

They lie in one folder of the artifact, which is deleted when it is committed. Files of parts are listed in
the ledger with their digests. Files that all parts share are sealed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from patchsae.storage import sealed
from patchsae.storage.atomic import remove, write_atomic
from patchsae.storage.errors import UserError
from patchsae.storage.files import FileRecord
from patchsae.storage.keys import canonical_json, parse_json
from patchsae.storage.sealed import Sealed

FOLDER = "parts"


def _arrays_of(part: int) -> str:
    return f"{FOLDER}/part-{part:06d}.safetensors"


def _json_of(part: int) -> str:
    # The name that unfinished artifacts of earlier versions have in their ledgers.
    return f"{FOLDER}/index-{part:06d}.json"


class Scratch:
    """The scratch files of the artifact that is built in `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write_part(self, part: int, arrays: Mapping[str, np.ndarray]) -> FileRecord:
        """Writes the arrays of a part; returns the file's record for the ledger."""
        data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        return self._write(_arrays_of(part), data)

    def part(self, part: int) -> ScratchArrays:
        """The arrays that `write_part` wrote. They are read when they are asked for, and not checked."""
        return ScratchArrays(self._root / _arrays_of(part))

    def has_part(self, part: int) -> bool:
        """Whether there are arrays of a part."""
        return (self._root / _arrays_of(part)).exists()

    def write_json(self, part: int, value: object) -> FileRecord:
        """Writes the JSON value of a part; returns the file's record for the ledger."""
        return self._write(_json_of(part), canonical_json(value).encode())

    def json(self, part: int) -> Any:
        """The value that `write_json` wrote."""
        return parse_json((self._root / _json_of(part)).read_bytes())

    def _write(self, name: str, data: bytes) -> FileRecord:
        write_atomic(self._root / name, data)
        return FileRecord.of_bytes(name, data)

    def share(self, name: str, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Writes arrays and JSON values that all parts read."""
        sealed.write(self._shared(name), arrays, values)

    def shared(self, name: str) -> Sealed | None:
        """What was shared under this name; None if nothing was, or if it is not what was written."""
        return sealed.read(self._shared(name))

    def has_shared(self, name: str) -> bool:
        """Whether there is anything under this name, also if it is not what was written."""
        return os.path.lexists(self._shared(name))

    def read_shared(self, name: str) -> Sealed:
        """What was shared under this name. Raises UserError if it is not what was written."""
        found = self.shared(name)
        if found is None:
            raise UserError(
                f"{self._shared(name)}: is not what was written; run the same command again, which writes it anew."
            )
        return found

    def _shared(self, name: str) -> Path:
        return self._root / FOLDER / f"shared-{name}.safetensors"

    def clear(self) -> None:
        """Deletes all scratch files."""
        remove(self._root / FOLDER)


class ScratchArrays:
    """The arrays of one file by name, each read when it is asked for.

    The file is opened anew for each array and closed again, since there may be thousands of files. Raises
    UserError if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def _open(self) -> Any:
        try:
            return safe_open(self._path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{self._path}: cannot be read any more ({error}); run the same command again."
            ) from None

    def __getitem__(self, key: str) -> np.ndarray:
        with self._open() as file:
            return np.asarray(file.get_tensor(key))

    def __contains__(self, key: str) -> bool:
        with self._open() as file:
            return key in file.keys()  # noqa: SIM118 (a safetensors file is no mapping)

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """The rows `start` to `stop` (`start < stop`) of an array; the other rows are not read."""
        with self._open() as file:
            return np.asarray(file.get_slice(key)[start:stop])
