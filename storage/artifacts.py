"""`Artifact`, with which stages read a committed artifact, and `Builder`, with which they write a new one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import ValidationError

from patchsae.storage import checkpoints, scratch, tables
from patchsae.storage.atomic import write_atomic
from patchsae.storage.checkpoints import Checkpoints
from patchsae.storage.errors import UserError
from patchsae.storage.keys import canonical_json, digest_file
from patchsae.storage.ledger import Ledger
from patchsae.storage.manifest import FILE as MANIFEST
from patchsae.storage.manifest import KEY_DIGITS, Manifest
from patchsae.storage.scratch import ScratchArrays
from patchsae.storage.tables import TableSchema, Values

_LOGS = "logs"


@dataclass(frozen=True)
class Artifact:
    """A reference to an artifact's folder. It is small and can be sent to another process."""

    stage: str
    key: str
    path: Path

    @cached_property
    def manifest(self) -> Manifest:
        """The checked manifest. Raises UserError if the artifact is not committed or was tampered with."""
        path = self.path / MANIFEST
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{self.path}: no finished artifact here; run the stage that makes it.") from None
        except ValidationError as error:
            raise UserError(
                f"{path}: not a manifest ({error.errors()[0]['msg']}); rerun the stage."
            ) from None
        fault = manifest.fault()
        if fault is None and manifest.key != self.key:
            fault = f"it belongs to the key {manifest.key[:KEY_DIGITS]}"
        if fault:
            raise UserError(f"{path}: {fault}; run the stage again to rebuild what cannot be trusted.")
        return manifest

    @property
    def is_committed(self) -> bool:
        return (self.path / MANIFEST).is_file()

    @property
    def identity(self) -> str:
        """What goes into the keys of artifacts made from this one. Raises UserError as `manifest` does."""
        return self.manifest.identity

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.path)

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path)

    def read(self, name: str) -> bytes:
        """The content of one of its files. Raises UserError if the file cannot be read."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.path / name}: cannot be read ({error.strerror}); run {self.stage} again."
            ) from None

    def table_files(self, name: str) -> list[Path]:
        """The files of one of its tables, in the order of their parts; empty if it has no such table."""
        return [self.path / o.path for o in self.manifest.outputs if tables.table_of(o.path) == name]

    def scan(self, name: str) -> pl.LazyFrame:
        """One of its tables as a lazy frame. Raises UserError if it has no such table."""
        files = self.table_files(name)
        if not files:
            raise UserError(f"{self.path}: has no table `{name}`.")
        return pl.scan_parquet(files)

    def fault(self) -> str | None:
        """Why a committed artifact cannot be used (bad manifest, missing or truncated file), or None."""
        try:
            outputs = self.manifest.outputs
        except UserError as error:
            return str(error)
        for output in outputs:
            if not output.has_right_size(self.path):
                return f"{self.path / output.path}: missing or truncated (expected {output.bytes:,} bytes)"
        return None

    def damaged_files(self, on_file: Callable[[], object] = lambda: None) -> list[str]:
        """The paths, relative to the artifact, of all outputs whose content does not match their digest.

        Reads every file. `on_file` is called after each file.
        """
        damaged = []
        for output in self.manifest.outputs:
            path = self.path / output.path
            if not output.has_right_size(self.path) or digest_file(path) != output.sha256:
                damaged.append(output.path)
            on_file()
        return damaged

    def n_bytes(self) -> int:
        """Bytes of all files in the folder. Other processes may add and delete files meanwhile."""
        total = 0
        for path in self.path.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
        return total


@dataclass
class Builder:
    """Writes the files of a new artifact. When the stage returns, the store commits it.

    `outputs` are the files of the result, beside those in the ledger. `identity` is what goes into the keys
    of artifacts made from this one; the artifact's key if it is None.
    """

    artifact: Artifact
    outputs: list[Path] = field(default_factory=list)
    identity: str | None = None

    @property
    def path(self) -> Path:
        return self.artifact.path

    @property
    def key(self) -> str:
        return self.artifact.key

    @property
    def ledger(self) -> Ledger:
        return self.artifact.ledger

    @property
    def checkpoints(self) -> Checkpoints:
        return self.artifact.checkpoints

    def add(self, path: Path) -> None:
        """Declares a file of the result that the ledger does not list. It may be added more than once."""
        if path not in self.outputs:
            self.outputs.append(path)

    def write(self, name: str, data: bytes) -> Path:
        """Writes a small file atomically and declares it."""
        path = self.path / name
        write_atomic(path, data)
        self.add(path)
        return path

    def write_table(self, schema: TableSchema, values: Values, part: int | None = None) -> None:
        """Writes a table, or the part `part` of one, and declares it."""
        path = self.path / tables.file_name(schema, part)
        tables.write(path, schema, values, self.key)
        self.add(path)

    def write_scratch(self, name: str, part: int, arrays: Mapping[str, np.ndarray]) -> Path:
        """Writes arrays that are deleted when the artifact is committed; returns the file for the ledger."""
        return scratch.write(self.path, name, part, arrays)

    def scratch(self, name: str, part: int) -> ScratchArrays:
        """The arrays that `write_scratch` wrote under this name and part."""
        return ScratchArrays(scratch.file_of(self.path, name, part))

    def write_scratch_json(self, name: str, part: int, value: object) -> Path:
        """Writes a JSON value that is deleted when the artifact is committed; returns its file."""
        path = self._scratch_json(name, part)
        write_atomic(path, canonical_json(value).encode())
        return path

    def has_scratch_json(self, name: str, part: int) -> bool:
        return self._scratch_json(name, part).is_file()

    def scratch_json(self, name: str, part: int) -> Any:
        """The value that `write_scratch_json` wrote under this name and part."""
        return json.loads(self._scratch_json(name, part).read_bytes())

    def _scratch_json(self, name: str, part: int) -> Path:
        return self.path / scratch.FOLDER / f"{name}-{part:06d}.json"

    def session_folder(self) -> Path:
        """A folder for files that the processes building the artifact share; deleted when it is committed."""
        folder = self.path / checkpoints.FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def logs_folder(self) -> Path:
        """The folder `logs` of the store, in which TensorBoard and Weights & Biases files are written."""
        return self.path.parents[1] / _LOGS
