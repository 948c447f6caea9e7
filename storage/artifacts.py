"""The artifact store: committed folders, each named by its key and described by its manifest.

Layout of a store:

    <stage>/<first 16 digits of the key>/    manifest.json, ledger/, tables/, activations.zarr/, ...
    locks/                                   one lock file per artifact
    experiments/<name>.json                  which artifacts a named experiment reached
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.atomic import explaining_full_disk, lock, remove_temporaries, write_atomic
from storage.errors import UserError
from storage.keys import artifact_key, canonical_json, digest_file, digest_json
from storage.ledger import FileRecord, Ledger

Summary = dict[str, float | int | str | None]
State = Literal["committed", "partial", "damaged"]

_MANIFEST = "manifest.json"
_DIRECTORY_DIGITS = 16
# What resuming needs and a finished artifact does not; deleted once the manifest is written.
PARTS = "parts"
CHECKPOINTS = "checkpoints"
_SCRATCH = (PARTS, CHECKPOINTS)


class Manifest(BaseModel):
    """What is known of a committed artifact. `digest` covers everything else in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    version: int
    key: str
    identity: str
    config: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[FileRecord]
    summary: Summary
    provenance: dict[str, Any]
    digest: str = ""

    def _computed_digest(self) -> str:
        return digest_json(self.model_dump(exclude={"digest"}))

    def sealed(self) -> Manifest:
        return self.model_copy(update={"digest": self._computed_digest()})

    def fault(self) -> str | None:
        """Why this manifest cannot be believed, or None."""
        if self.digest != self._computed_digest():
            return "its content does not match its own digest (it was edited or damaged)"
        if self.key != artifact_key(self.stage, self.version, self.config, self.inputs):
            return "its key does not match its config and inputs"
        return None


@dataclass(frozen=True)
class Artifact:
    """A reference to an artifact's folder; small, and safe to send to another process."""

    stage: str
    key: str
    path: Path

    @cached_property
    def manifest(self) -> Manifest:
        """The checked manifest. Raises UserError if the artifact is not committed or was tampered with."""
        path = self.path / _MANIFEST
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
            fault = f"it belongs to the key {manifest.key[:_DIRECTORY_DIGITS]}"
        if fault:
            raise UserError(f"{path}: {fault}; run the stage again to rebuild what cannot be trusted.")
        return manifest

    @property
    def is_committed(self) -> bool:
        return (self.path / _MANIFEST).is_file()

    @property
    def identity(self) -> str:
        """What artifacts made from this one carry in their keys."""
        return self.manifest.identity

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.path)

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
        """Every output whose content does not match its digest, relative to the artifact. Reads everything.

        `on_file` is called after each file.
        """
        damaged = []
        for output in self.manifest.outputs:
            path = self.path / output.path
            if not output.has_right_size(self.path) or digest_file(path) != output.sha256:
                damaged.append(output.path)
            on_file()
        return damaged

    def n_bytes(self) -> int:
        """Size on disk of everything in the folder, which may be growing."""
        total = 0
        for path in self.path.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.is_file() else 0
        return total


@dataclass
class Builder:
    """An artifact being made. Write below `path`, then return; the store commits it."""

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

    def add(self, path: Path) -> None:
        """Declares a file, outside the ledger, as part of the result. A file may be rewritten and added again."""
        if path not in self.outputs:
            self.outputs.append(path)

    def write(self, name: str, data: bytes) -> Path:
        """Writes a small file atomically and declares it."""
        path = self.path / name
        write_atomic(path, data)
        self.add(path)
        return path


def _is_scratch(path: str) -> bool:
    return path.split("/", 1)[0] in _SCRATCH


class Store:
    """The only truth about what has been computed."""

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        text = os.fspath(uri)
        if "://" in text and not text.startswith("file://"):
            raise UserError(
                f"--store {text}: only local folders (a path or file:///path) can be a store at present; "
                "mount the bucket or give a local path."
            )
        self.root = Path(text.removeprefix("file://")).expanduser().absolute()
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"--store {self.root}: is a file; give a folder.")

    def check_writable(self) -> None:
        """Makes the store's folder. Raises UserError if nothing can be written there."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.root, os.W_OK | os.X_OK)
        except OSError:
            writable = False
        if not writable:
            raise UserError(f"--store {self.root}: nothing can be written there; give another folder.")

    def at(self, stage: str, key: str) -> Artifact:
        return Artifact(stage, key, self.root / stage / key[:_DIRECTORY_DIGITS])

    def is_usable(self, stage: str, key: str) -> bool:
        """Whether the artifact is committed and whole (sizes; digests are `verify`'s work)."""
        artifact = self.at(stage, key)
        return artifact.is_committed and artifact.fault() is None

    @contextlib.contextmanager
    def locked(self, artifact: Artifact, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Holds the lock of one artifact; a second process that wants to build it waits here."""
        name = f"{artifact.stage}-{artifact.key[:_DIRECTORY_DIGITS]}.lock"
        with explaining_full_disk(self.root), lock(self.root / "locks" / name, on_wait):
            yield

    def begin(self, artifact: Artifact) -> Builder:
        """Prepares the folder for building, keeping finished parts. Call it holding the lock."""
        artifact.path.mkdir(parents=True, exist_ok=True)
        self.uncommit(artifact)
        remove_temporaries(artifact.path)
        return Builder(artifact)

    def commit(
        self,
        builder: Builder,
        version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        summary: Summary,
        provenance: Mapping[str, Any],
    ) -> Artifact:
        """Writes the manifest: from here on the artifact exists."""
        ledger = builder.ledger
        recorded = [
            file
            for entry in sorted(ledger.folder.glob("part-*.json"))
            for file in ledger.files(int(entry.stem.split("-")[1]))
        ]
        declared = [FileRecord.of(builder.path, path) for path in builder.outputs]
        outputs = {file.path: file for file in (*recorded, *declared) if not _is_scratch(file.path)}
        manifest = Manifest(
            stage=builder.artifact.stage,
            version=version,
            key=builder.key,
            identity=builder.identity or builder.key,
            config=dict(config),
            inputs=dict(inputs),
            outputs=sorted(outputs.values(), key=lambda file: file.path),
            summary=summary,
            provenance=dict(provenance),
        ).sealed()
        write_atomic(builder.path / _MANIFEST, manifest.model_dump_json(indent=1).encode())
        if any(_is_scratch(file.path) for file in recorded):
            shutil.rmtree(ledger.folder)
        for name in _SCRATCH:
            shutil.rmtree(builder.path / name, ignore_errors=True)
        return Artifact(builder.artifact.stage, builder.key, builder.path)

    def uncommit(self, artifact: Artifact) -> None:
        """Takes back the manifest, so that the next run completes the artifact from its sound parts."""
        (artifact.path / _MANIFEST).unlink(missing_ok=True)

    def discard(self, artifact: Artifact) -> None:
        """Deletes an artifact: manifest first, so that a kill in between leaves no lie."""
        self.uncommit(artifact)
        shutil.rmtree(artifact.path, ignore_errors=False)

    def artifacts(self) -> Iterator[tuple[Artifact, State]]:
        """Everything in the store, committed or not, by stage and then age."""
        for folder in sorted(
            self.root.glob("*/*/"), key=lambda path: (path.parent.name, path.stat().st_mtime)
        ):
            if folder.parent.name in ("locks", "experiments"):
                continue
            if len(folder.name) != _DIRECTORY_DIGITS:
                continue
            artifact = Artifact(folder.parent.name, self._key_of(folder), folder)
            if not artifact.is_committed:
                yield artifact, "partial"
            else:
                yield artifact, "damaged" if artifact.fault() else "committed"

    def committed(self, stage: str | None = None) -> list[Artifact]:
        """The artifacts that can be read."""
        return [a for a, state in self.artifacts() if state == "committed" and stage in (None, a.stage)]

    @staticmethod
    def _key_of(folder: Path) -> str:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return str(json.loads((folder / _MANIFEST).read_bytes())["key"])
        return folder.name

    def free_bytes(self) -> int:
        """Space left where the store is, or will be."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def record_experiment(self, name: str, artifacts: Mapping[str, tuple[str, str]]) -> None:
        """Notes which (stage, key) each address of a named experiment stands for; `gc` keeps those."""
        write_atomic(
            self.root / "experiments" / f"{name}.json",
            canonical_json({address: list(pair) for address, pair in artifacts.items()}).encode(),
        )

    def forget_experiment(self, name: str) -> None:
        """Drops the record of a named experiment, so that `gc` may take what only that one needed.

        Raises UserError if there is none of that name.
        """
        try:
            (self.root / "experiments" / f"{name}.json").unlink()
        except FileNotFoundError:
            known = ", ".join(self.experiments()) or "none"
            raise UserError(f"{self.root}: no recorded run `{name}` (recorded: {known}).") from None

    def experiments(self) -> dict[str, dict[str, tuple[str, str]]]:
        """Every recorded experiment: name -> address -> (stage, key)."""
        found = {}
        for path in sorted((self.root / "experiments").glob("*.json")):
            try:
                found[path.stem] = {a: (s, k) for a, (s, k) in json.loads(path.read_bytes()).items()}
            except (json.JSONDecodeError, ValueError, AttributeError):
                raise UserError(
                    f"{path}: not readable as an experiment record; delete it and run again."
                ) from None
        return found
