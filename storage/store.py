"""`Store`: the folder of all artifacts and the records of experiments. What it does not hold is not computed.

Layout of a store:

    <stage>/<first 16 digits of the key>/    manifest.json, ledger/, tables/, activations.zarr/, ...
    locks/                                   one lock file per artifact
    experiments/<name>.json                  the record of an experiment: its configs and its artifacts
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from patchsae.storage import checkpoints, scratch
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.atomic import explaining_full_disk, lock, remove_temporaries, write_atomic
from patchsae.storage.errors import UserError
from patchsae.storage.ledger import FileRecord
from patchsae.storage.manifest import FILE as MANIFEST
from patchsae.storage.manifest import KEY_DIGITS, Manifest, Summary
from patchsae.storage.records import ExperimentRecord

_LOCKS, _EXPERIMENTS = "locks", "experiments"
State = Literal["committed", "partial", "damaged"]


# Folders of an artifact that only resuming needs. They are deleted once the manifest is written.
_SCRATCH = (scratch.FOLDER, checkpoints.FOLDER)


def _is_scratch(path: str) -> bool:
    return path.split("/", 1)[0] in _SCRATCH


class Store:
    """A folder of artifacts, addressed by stage and key. `uri` is a path or `file:///path`.

    Raises UserError for any other URI, and for a path that is a file.
    """

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
        return Artifact(stage, key, self.root / stage / key[:KEY_DIGITS])

    def is_usable(self, stage: str, key: str) -> bool:
        """Whether the artifact is committed and its files have the right sizes. It does not read them."""
        artifact = self.at(stage, key)
        return artifact.is_committed and artifact.fault() is None

    @contextlib.contextmanager
    def locked(self, artifact: Artifact, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Holds the lock of one artifact. If another process holds it, calls `on_wait` once and waits."""
        name = f"{artifact.stage}-{artifact.key[:KEY_DIGITS]}.lock"
        with explaining_full_disk(self.root), lock(self.root / _LOCKS / name, on_wait):
            yield

    def begin(self, artifact: Artifact) -> Builder:
        """Prepares the folder for building; finished parts are kept. The caller must hold the lock."""
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
        """Writes the manifest, which commits the artifact, and deletes what only resuming needed."""
        ledger = builder.ledger
        recorded = [file for part in ledger.parts() for file in ledger.files(part)]
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
        write_atomic(builder.path / MANIFEST, manifest.model_dump_json(indent=1).encode())
        artifact = Artifact(builder.artifact.stage, builder.key, builder.path)
        self.tidy(artifact)
        return artifact

    def has_leftovers(self, artifact: Artifact) -> bool:
        """Whether there are files that only resuming needed."""
        return any((artifact.path / name).exists() for name in _SCRATCH)

    def tidy(self, artifact: Artifact) -> None:
        """Deletes the files of a committed artifact that only resuming needed. The caller must hold the lock.

        A process that is killed right after it wrote the manifest leaves them behind.
        """
        ledger = artifact.ledger
        # The parts of one artifact are alike, so the first tells whether the ledger speaks of scratch files.
        if any(_is_scratch(file.path) for part in ledger.parts()[:1] for file in ledger.files(part)):
            shutil.rmtree(ledger.folder)
        for name in _SCRATCH:
            if (artifact.path / name).exists():
                shutil.rmtree(artifact.path / name)

    def uncommit(self, artifact: Artifact) -> None:
        """Deletes the manifest, so that the next run completes the artifact from its sound parts."""
        (artifact.path / MANIFEST).unlink(missing_ok=True)

    def discard(self, artifact: Artifact) -> None:
        """Deletes an artifact, if there is one.

        The manifest is deleted first, so that a process killed in between leaves an unfinished artifact.
        """
        self.uncommit(artifact)
        if artifact.path.exists():
            shutil.rmtree(artifact.path)

    def artifacts(self) -> Iterator[tuple[Artifact, State]]:
        """Every artifact in the store with its state, sorted by stage and then by age."""
        for folder in sorted(
            self.root.glob("*/*/"), key=lambda path: (path.parent.name, path.stat().st_mtime)
        ):
            if folder.parent.name in (_LOCKS, _EXPERIMENTS):
                continue
            if len(folder.name) != KEY_DIGITS:
                continue
            artifact = Artifact(folder.parent.name, self._key_of(folder), folder)
            if not artifact.is_committed:
                yield artifact, "partial"
            else:
                yield artifact, "damaged" if artifact.fault() else "committed"

    def committed(self, stage: str | None = None) -> list[Artifact]:
        """The committed artifacts, of all stages or of one, whose files have the right sizes."""
        return [a for a, state in self.artifacts() if state == "committed" and stage in (None, a.stage)]

    def manifests(self, stage: str) -> list[Manifest]:
        """The manifests of a stage's artifacts; damaged ones are left out."""
        found = []
        for folder in sorted((self.root / stage).glob("*/")):
            with contextlib.suppress(UserError):
                found.append(Artifact(stage, self._key_of(folder), folder).manifest)
        return found

    @staticmethod
    def _key_of(folder: Path) -> str:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return str(json.loads((folder / MANIFEST).read_bytes())["key"])
        return folder.name

    def free_bytes(self) -> int:
        """Free bytes on the disk of the store, whose folder need not exist yet."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def record_experiment(self, name: str, record: ExperimentRecord) -> None:
        """Writes the record of a named experiment. `patchsae gc` keeps the artifacts that a record lists."""
        folder = self.root / _EXPERIMENTS
        with explaining_full_disk(self.root), lock(self.root / _LOCKS / f"{_EXPERIMENTS}.lock"):
            remove_temporaries(folder)
            write_atomic(folder / f"{name}.json", record.to_json())

    def forget_experiment(self, name: str) -> None:
        """Deletes the record of an experiment, so that `patchsae gc` may delete artifacts only it needed.

        Raises UserError if there is no record of that name.
        """
        try:
            (self.root / _EXPERIMENTS / f"{name}.json").unlink()
        except FileNotFoundError:
            known = ", ".join(self.experiments()) or "none"
            raise UserError(f"{self.root}: no recorded run `{name}` (recorded: {known}).") from None

    def experiments(self) -> dict[str, ExperimentRecord]:
        """The records of all experiments by name. Raises UserError if one cannot be read."""
        found = {}
        for path in sorted((self.root / _EXPERIMENTS).glob("*.json")):
            try:
                found[path.stem] = ExperimentRecord.of_json(path.read_bytes())
            except ValueError:
                raise UserError(
                    f"{path}: not readable as an experiment record; delete it and run again."
                ) from None
        return found
