"""`Artifact`, with which stages read a committed artifact, and `Builder`, with which they write a new one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import polars as pl
from pydantic import ValidationError

from patchsae.storage import checkpoints, tables
from patchsae.storage.atomic import remove, write_atomic
from patchsae.storage.checkpoints import Checkpoints
from patchsae.storage.errors import Damaged, UserError
from patchsae.storage.files import REMEDY, FileRecord, read_regular
from patchsae.storage.keys import digest_json
from patchsae.storage.ledger import Ledger
from patchsae.storage.manifest import FILE as MANIFEST
from patchsae.storage.manifest import KEY_DIGITS, Manifest
from patchsae.storage.scratch import Scratch
from patchsae.storage.tables import TableSchema, Values

_LOGS = "logs"
_INPUTS = "inputs"


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
            manifest = Manifest.model_validate_json(read_regular(path))
        except FileNotFoundError:
            raise UserError(f"{self.path}: no finished artifact here; run the stage that makes it.") from None
        except OSError as error:
            raise Damaged(f"{path}: cannot be read ({error.strerror}); {REMEDY}") from None
        except ValidationError as error:
            raise Damaged(f"{path}: is no manifest ({error.errors()[0]['msg']}); {REMEDY}") from None
        fault = manifest.fault()
        if fault is None and manifest.key != self.key:
            fault = f"it belongs to the key {manifest.key[:KEY_DIGITS]}"
        if fault:
            raise Damaged(f"{path}: {fault}; {REMEDY}")
        return manifest

    @property
    def is_committed(self) -> bool:
        """Whether there is a manifest, or something else in its place. It is not read."""
        return os.path.lexists(self.path / MANIFEST)

    @property
    def is_usable(self) -> bool:
        """Whether it is committed and its files have the right sizes. They are not read, only the manifest is."""
        return self.is_committed and self.fault() is None

    @property
    def stamp(self) -> tuple[int, int, int] | None:
        """A value that changes when the artifact is built again; None if there is no manifest."""
        try:
            found = (self.path / MANIFEST).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    @property
    def identity(self) -> str:
        """What goes into the keys of artifacts made from this one. Raises UserError as `manifest` does."""
        return self.manifest.identity

    @property
    def content(self) -> str:
        """A digest that changes if the artifact is built again with other bytes. Raises UserError as `manifest` does.

        It is the identity where that is a digest of the content already.
        """
        if self.identity != self.key:
            return self.identity
        return digest_json([[output.path, output.sha256] for output in self.manifest.outputs])

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.path)

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path)

    def read(self, name: str) -> bytes:
        """The content of one of its files. Raises UserError if that is not what was written."""
        record = self.manifest.output(name)
        if record is None:
            raise Damaged(f"{self.path}: has no file `{name}`; {REMEDY}")
        with self._noticing_a_rebuild():
            return record.read(self.path)

    def checked(self, name: str) -> Path:
        """The path of one of its files, which is what was written. Raises UserError as `read` does.

        It is read once per process for that.
        """
        record = self.manifest.output(name)
        if record is None:
            raise Damaged(f"{self.path}: has no file `{name}`; {REMEDY}")
        with self._noticing_a_rebuild():
            record.check(self.path)
        return self.path / name

    @contextlib.contextmanager
    def _noticing_a_rebuild(self) -> Iterator[None]:
        """Replaces an error about damage if another artifact took the place of the one that was opened."""
        try:
            yield
        except UserError:
            now = Artifact(self.stage, self.key, self.path)
            if now.manifest.digest != self.manifest.digest:
                raise UserError(f"{self.path}: was built again since it was opened; open it anew.") from None
            raise

    def _table_records(self, name: str) -> list[FileRecord]:
        return [output for output in self.manifest.outputs if tables.table_of(output.path) == name]

    def table_names(self) -> list[str]:
        """The names of its tables."""
        names = (tables.table_of(output.path) for output in self.manifest.outputs)
        return list(dict.fromkeys(name for name in names if name is not None))

    def table_files(self, name: str) -> list[Path]:
        """The files of one of its tables, in the order of their parts; empty if it has no such table."""
        return [self.path / output.path for output in self._table_records(name)]

    def scan(self, name: str) -> pl.LazyFrame:
        """One of its tables as a lazy frame.

        Raises UserError if it has no such table, or if the table is not what was written. That is found by
        reading the files, once per process.
        """
        # Without glob, since the store's path may hold a `*`.
        return pl.scan_parquet(self._checked_files(name), glob=False)

    def sentences(self, name: str) -> dict[str, str]:
        """Column -> its sentence, of one of its tables. Raises UserError as `scan` does."""
        return tables.sentences(self._checked_files(name)[0])

    def _checked_files(self, name: str) -> list[Path]:
        records = self._table_records(name)
        if not records:
            raise UserError(f"{self.path}: has no table `{name}`.")
        with self._noticing_a_rebuild():
            for record in records:
                record.check(self.path)
        return self.table_files(name)

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

    def damaged_files(
        self, on_file: Callable[[], object] = lambda: None, among: Sequence[str] | None = None
    ) -> list[str]:
        """The paths, relative to the artifact, of all outputs and ledger entries that do not match their digest.

        Reads every file, or of the outputs only those that `among` names. `on_file` is called after each output.
        """
        damaged = [path.relative_to(self.path).as_posix() for path in self.ledger.damaged()]
        for output in self.manifest.outputs:
            if (among is None or output.path in among) and not output.is_sound(self.path):
                damaged.append(output.path)
            on_file()
        return damaged

    def n_bytes(self) -> int:
        """Bytes of all files in the folder. Other processes may add and delete files meanwhile."""
        total = 0
        for folder, _, names in os.walk(self.path):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 (a loop over all files)
        return total


@dataclass
class Builder:
    """Writes the files of a new artifact. When the stage returns, the store commits it.

    `outputs` are the files of the result that are not in the ledger, as they were when they were written.
    `identity` is what goes into the keys of artifacts made from this one; the artifact's key if it is None.
    `made_from` maps a role to a digest of the input's content, if `resume_from` was told it.
    """

    artifact: Artifact
    outputs: dict[str, FileRecord] = field(default_factory=dict)
    identity: str | None = None
    made_from: dict[str, str] | None = None

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

    @property
    def scratch(self) -> Scratch:
        return Scratch(self.path)

    def declare(self, name: str, data: bytes) -> None:
        """Declares a file of the result that is on the disk already and holds `data`."""
        self.outputs[name] = FileRecord.of_bytes(name, data)

    def write(self, name: str, data: bytes) -> Path:
        """Writes a file of the result atomically and declares it."""
        path = self.path / name
        write_atomic(path, data)
        self.declare(name, data)
        return path

    def write_table(self, schema: TableSchema, values: Values, part: int | None = None) -> None:
        """Writes a table, or the part `part` of one, and declares it."""
        self.write(tables.file_name(schema, part), tables.encode(schema, values, self.key))

    def start_over(self) -> None:
        """Forgets all finished parts and checkpoints."""
        remove(self.ledger.folder)
        remove(self.checkpoints.folder)
        self.scratch.clear()
        if self.made_from is not None:
            self.scratch.share(_INPUTS, {}, self.made_from)

    def resume_from(self, inputs: Mapping[str, str]) -> None:
        """Starts over if what is done was made from other inputs; `inputs` maps a role to a digest of its content.

        Versions before did not note them: what they left is gone on with.
        """
        noted = self.scratch.shared(_INPUTS)
        if self.scratch.has_shared(_INPUTS) and (noted is None or noted.values != dict(inputs)):
            self.start_over()
        self.made_from = dict(inputs)
        self.scratch.share(_INPUTS, {}, inputs)

    def session_folder(self) -> Path:
        """A folder for files that the processes building the artifact share; deleted when it is committed."""
        folder = self.path / checkpoints.FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def logs_folder(self) -> Path:
        """The folder `logs` of the store, in which TensorBoard and Weights & Biases files are written."""
        return self.path.parents[1] / _LOGS
