"""`Store`: the folder of all artifacts and the records of experiments. What it does not hold is not computed.

Layout of a store:

    <stage>/<first 16 digits of the key>/    manifest.json, ledger/, tables/, activations.zarr/, ...
    <stage>/.<the same>.rebuild/             an artifact that is built again, until it takes the old one's place
    locks/                                   lock files, two per artifact: for its builder and its readers;
                                             the marks of runs (`run_marks.py`)
    experiments/<name>.json                  the record of an experiment: its configs and its artifacts
    dropped/<stage>-<the same>               why `verify --discard` dropped an artifact, until it is built again
    logs/<name>-<date>-<time>.log            what a run of the command line did, for people to read

A committed artifact does not change. Who builds it holds the lock `.lock`, alone. Who reads it during a stage
holds the lock `.read`, with other readers. Who puts a new one in its place, or deletes it, holds `.read` alone,
and so waits for the readers.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from patchsae.storage import checkpoints, run_logs, run_marks, scratch
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.atomic import (
    exchange,
    explaining_full_disk,
    make_folder,
    nearest_folder,
    remove,
    remove_temporaries,
    temporaries,
    temporaries_of,
    write_atomic,
)
from patchsae.storage.errors import UserError
from patchsae.storage.files import changed_at, expanded, read_regular
from patchsae.storage.keys import parse_json
from patchsae.storage.locks import Busy, allow_open_files, is_locked, lock, refuse
from patchsae.storage.manifest import FILE as MANIFEST
from patchsae.storage.manifest import KEY_DIGITS, Manifest, Summary
from patchsae.storage.records import Records
from patchsae.storage.run_marks import RunMarks

_LOCKS, _EXPERIMENTS, _LOGS, _DROPPED = "locks", "experiments", "logs", "dropped"
_NO_STAGES = (_LOCKS, _EXPERIMENTS, _LOGS, _DROPPED)
_BUILD, _READ = "lock", "read"
State = Literal["committed", "partial", "damaged"]
OnWait = Callable[[], None]

# Folders of an artifact that only resuming needs. They are deleted once the manifest is written.
_SCRATCH = (scratch.FOLDER, checkpoints.FOLDER)

# A folder `.KEY.rebuild` with this file has not taken its place yet. One without it is the old artifact, whose
# place was taken and which is to be deleted.
_REBUILDING = "rebuilding"
_REBUILD, _ASIDE = ".rebuild", ".aside"
_KEY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")


def _is_scratch(path: str) -> bool:
    return path.split("/", 1)[0] in _SCRATCH


@dataclass(frozen=True)
class Leftover:
    """Files that a killed process left and that no result needs. `what` says what they are."""

    artifact: Artifact
    what: str
    paths: tuple[Path, ...]

    def n_bytes(self) -> int:
        return sum(Artifact("", "", path).n_bytes() for path in self.paths)


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
        self.root = expanded(text.removeprefix("file://")).absolute()
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"--store {self.root}: is a file; give a folder.")

    def check_readable(self) -> None:
        """Raises UserError if the store's folder is not there or cannot be listed."""
        try:
            os.listdir(self.root)  # noqa: PTH208 (raises an error, unlike a loop over no path)
        except OSError as error:
            raise UserError(
                f"--store {self.root}: cannot be read ({error.strerror}); give the folder of a store."
            ) from None

    def faults(self) -> list[str]:
        """A sentence for every folder of the store that cannot be listed, and for what is in an artifact's place."""
        found = []
        for stage in sorted(self.root.iterdir()):
            if stage.is_symlink() and not stage.exists():
                found.append(f"{stage}: is a link to nothing; delete it.")
            if not stage.is_dir():
                continue
            try:
                inside = sorted(stage.iterdir())
            except OSError as error:
                found.append(f"{stage}: cannot be listed ({error.strerror}); change its rights.")
                continue
            for path in inside if stage.name not in _NO_STAGES else ():
                if not _KEY.fullmatch(path.name):
                    continue
                if not path.is_dir():
                    found.append(f"{path}: is no folder, where an artifact belongs; delete it.")
                elif not os.access(path, os.R_OK | os.X_OK):
                    found.append(f"{path}: cannot be listed; change its rights.")
        return found

    def check_writable(self) -> None:
        """Makes the store's folder. Raises UserError if nothing can be written there."""
        with contextlib.suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
        if not self.is_writable():
            raise UserError(f"--store {self.root}: nothing can be written there; give another folder.")

    def is_writable(self) -> bool:
        return os.access(self.root, os.W_OK | os.X_OK)

    def at(self, stage: str, key: str) -> Artifact:
        return Artifact(stage, key, self.root / stage / key[:KEY_DIGITS])

    def is_usable(self, stage: str, key: str) -> bool:
        """Whether the artifact is there and can be used (`Artifact.is_usable`)."""
        return self.at(stage, key).is_usable

    def _lock(self, artifact: Artifact, kind: str) -> Path:
        # Named after the folder: the key of a damaged manifest may be another one.
        return self.root / _LOCKS / f"{artifact.stage}-{artifact.path.name}.{kind}"

    @contextlib.contextmanager
    def building(self, artifact: Artifact, on_wait: OnWait | None = None) -> Iterator[None]:
        """Holds the lock of who builds an artifact. If another process builds it, calls `on_wait` and waits."""
        with explaining_full_disk(self.root), lock(self._lock(artifact, _BUILD), on_wait):
            yield

    def is_being_built(self, artifact: Artifact) -> bool:
        """Whether a process holds the lock of who builds an artifact."""
        return is_locked(self._lock(artifact, _BUILD))

    @contextlib.contextmanager
    def reading(self, artifacts: Iterable[Artifact]) -> Iterator[None]:
        """Keeps artifacts as they are: nobody deletes them or puts others in their place meanwhile.

        A store that this process cannot write to has no lock files for it, and is read without.
        """
        if self.root.is_dir() and not self.is_writable():
            yield
            return
        distinct = {(artifact.stage, artifact.key): artifact for artifact in artifacts}
        allow_open_files(len(distinct))
        with contextlib.ExitStack() as held:
            # Every process takes locks in this order, so that no two processes wait for each other.
            for _, artifact in sorted(distinct.items()):
                held.enter_context(lock(self._lock(artifact, _READ), shared=True))
            yield

    @contextlib.contextmanager
    def changing(self, artifact: Artifact, on_wait: OnWait | None = None) -> Iterator[None]:
        """Holds an artifact that nobody reads. If a process reads it, calls `on_wait` and waits."""
        with lock(self._lock(artifact, _READ), on_wait):
            yield

    def begin(self, artifact: Artifact, again: bool = False, on_wait: OnWait | None = None) -> Builder:
        """Prepares the folder for building; finished parts are kept. The caller must hold the building lock.

        With `again`, an artifact that is there stays until the new one takes its place, which is built beside
        it. Otherwise what is there is completed: `on_wait` is called if a process still reads that. Raises
        UserError if the folder is a link.
        """
        self._refuse_links(artifact)
        if again:
            artifact = self.rebuild_of(artifact)
            make_folder(artifact.path)
            (artifact.path / _REBUILDING).touch()
            remove(artifact.path / MANIFEST)
        else:
            make_folder(artifact.path)
            self.drop(artifact, on_wait)
        remove_temporaries(artifact.path)
        artifact.ledger.remove_damaged()
        return Builder(artifact)

    def rebuild_of(self, artifact: Artifact) -> Artifact:
        """The artifact that is built again beside `artifact`, finished or not; it may not be there."""
        path = artifact.path.with_name(f".{artifact.path.name}{_REBUILD}")
        return Artifact(artifact.stage, artifact.key, path)

    def _refuse_links(self, artifact: Artifact) -> None:
        """Raises UserError if the stage's or the artifact's folder, or one inside it, is a link."""
        folders = [Path(folder, name) for folder, names, _ in os.walk(artifact.path) for name in names]
        for path in (artifact.path.parent, artifact.path, *folders):
            if path.is_symlink():
                raise UserError(
                    f"{path}: is a link, and nothing is written through links inside a store; put the folder "
                    "itself there, or make a link of the whole store."
                )

    def commit(
        self,
        builder: Builder,
        version: int,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        summary: Summary,
        provenance: Mapping[str, Any],
        on_wait: OnWait | None = None,
    ) -> Artifact:
        """Writes the manifest, which commits the artifact, and deletes what only resuming needed.

        One that was built again then takes the old one's place: if a process reads that, calls `on_wait` and
        waits.
        """
        ledger = builder.ledger
        recorded = [file for part in ledger.parts() for file in ledger.files(part)]
        declared = builder.outputs.values()
        outputs = {file.path: file for file in (*recorded, *declared) if not _is_scratch(file.path)}
        manifest = Manifest(
            stage=builder.artifact.stage,
            version=version,
            key=builder.key,
            identity=builder.identity or builder.key,
            config=dict(config),
            inputs=dict(inputs),
            outputs=sorted(outputs.values(), key=lambda file: file.path),
            summary={name: _defined(value) for name, value in summary.items()},
            provenance=dict(provenance),
        ).sealed()
        write_atomic(builder.path / MANIFEST, manifest.model_dump_json(indent=1).encode())
        self.tidy(builder.artifact)
        artifact = self.at(builder.artifact.stage, builder.key)
        self._remove_notes(artifact)
        self.settle(artifact, on_wait)
        return artifact

    def settle(self, artifact: Artifact, on_wait: OnWait | None = None) -> bool:
        """Puts an artifact that was built again into its place, if it is finished, and deletes the old one.

        Returns whether it did. The caller must hold the building lock. If a process reads the old one, calls
        `on_wait` and waits.
        """
        rebuild = self.rebuild_of(artifact)
        is_finished = (rebuild.path / _REBUILDING).exists() and rebuild.is_committed
        if not (rebuild.path / _REBUILDING).exists():
            remove(rebuild.path)
        elif is_finished:
            with self.changing(artifact, on_wait):
                if artifact.path.exists():
                    exchange(artifact.path, rebuild.path)
                else:
                    rebuild.path.rename(artifact.path)
            remove(artifact.path / _REBUILDING)
            remove(rebuild.path)
        remove(artifact.path.with_name(f"{artifact.path.name}{_ASIDE}"))
        if artifact.is_committed:
            remove(artifact.path / _REBUILDING)
        return is_finished

    def leftovers(self, artifact: Artifact) -> list[Leftover]:
        """What killed processes left of an artifact. It may still be in use unless the building lock is held."""
        found = []
        rebuild = self.rebuild_of(artifact)
        if rebuild.path.exists():
            what = "finished rebuild" if rebuild.is_committed else "unfinished rebuild"
            found.append(Leftover(artifact, what, (rebuild.path,)))
        if artifact.is_committed:
            left = [artifact.path / name for name in _SCRATCH if (artifact.path / name).exists()]
            if self._ledger_is_scratch(artifact):
                left.append(artifact.ledger.folder)
            left += [
                path
                for path in temporaries(artifact.path)
                if not any(path.is_relative_to(one) for one in left)
            ]
            left += self._notes(artifact)
            if left:
                found.append(Leftover(artifact, "scratch of a finished artifact", tuple(left)))
        return found

    def orphans(self) -> list[Artifact]:
        """Artifacts of which only a rebuild is there, or the folder that was put aside for one."""
        found = {
            Artifact(path.parent.name, key, path.with_name(key))
            for path in self.root.glob("*/*/")
            for key in [path.name.removeprefix(".").removesuffix(_REBUILD).removesuffix(_ASIDE)]
            if path.name != key and _KEY.fullmatch(key) and not path.with_name(key).exists()
        }
        return sorted(found, key=lambda artifact: artifact.path)

    def _ledger_is_scratch(self, artifact: Artifact) -> bool:
        """Whether the parts of an artifact left nothing but scratch files. They are alike, so one tells."""
        ledger = artifact.ledger
        parts = ledger.parts()
        files = next((files for part in parts if (files := ledger.files(part))), None)
        if files is None:
            return ledger.folder.is_dir() and not parts
        return any(_is_scratch(file.path) for file in files)

    def tidy(self, artifact: Artifact) -> None:
        """Deletes the files of a committed artifact that only resuming needed. Needs the building lock.

        A process that is killed right after it wrote the manifest leaves them behind. One that is killed in
        `verify --discard` leaves a note of what it was about to drop.
        """
        if self._ledger_is_scratch(artifact):
            remove(artifact.ledger.folder)
        for name in _SCRATCH:
            remove(artifact.path / name)
        remove_temporaries(artifact.path)
        self._remove_notes(artifact)

    def drop(self, artifact: Artifact, on_wait: OnWait | None = None) -> None:
        """Takes the manifest and the files of the wrong size away from a damaged artifact.

        The next run completes it from what is left. Needs the building lock. If a process reads the artifact,
        calls `on_wait` and waits. Raises UserError if its folder is a link.
        """
        if not artifact.is_committed:
            return
        self._refuse_links(artifact)
        with self.changing(artifact, on_wait):
            outputs: list[str] = []
            with contextlib.suppress(UserError):
                outputs = [o.path for o in artifact.manifest.outputs if not o.has_right_size(artifact.path)]
            remove(artifact.path / MANIFEST)
            self.drop_files(artifact, outputs)

    def drop_files(self, artifact: Artifact, files: Iterable[str]) -> None:
        """Deletes files of an artifact without a manifest, and the ledger's entries of the parts they belong to."""
        names = list(files)
        artifact.ledger.forget(names)
        for name in names:
            path = artifact.path / name
            remove(path)
            # What is in the place of a folder would be in the way of the next run.
            for above in path.parents:
                if above == artifact.path:
                    break
                if os.path.lexists(above) and not above.is_dir():
                    remove(above)

    def _note(self, artifact: Artifact) -> Path:
        return self.root / _DROPPED / f"{artifact.stage}-{artifact.path.name}"

    def _notes(self, artifact: Artifact) -> list[Path]:
        """The note, if there is one, and what a process left that was killed while it wrote the note."""
        note = self._note(artifact)
        return [*([note] if os.path.lexists(note) else []), *temporaries_of(note)]

    def _remove_notes(self, artifact: Artifact) -> None:
        for note in self._notes(artifact):
            remove(note)

    def note_dropped(self, artifact: Artifact, why: str) -> None:
        """Notes why an artifact is dropped, for those who wonder where it is. Committing it deletes the note."""
        write_atomic(self._note(artifact), why.encode())

    def why_dropped(self, artifact: Artifact) -> str | None:
        """Why an artifact that is not there was dropped; None if nothing was noted."""
        try:
            return read_regular(self._note(artifact)).decode()
        except (OSError, UnicodeDecodeError):
            return None

    def discard(self, artifact: Artifact, on_wait: OnWait | None = None) -> None:
        """Deletes an artifact and what is left of building it, if there is one. Needs the building lock.

        If a process reads it, calls `on_wait` and waits. The manifest is deleted first, so that a process killed
        in between leaves an unfinished artifact.
        """
        self._refuse_links(artifact)
        with self.changing(artifact, on_wait):
            remove(artifact.path / MANIFEST)
            remove(artifact.path)
            remove(self.rebuild_of(artifact).path)

    def _folders(self, stage: str | None = None) -> list[Path]:
        """The folders of all artifacts, or of those of one stage."""
        return [
            folder
            for folder in self.root.glob(f"{stage or '*'}/*/")
            if folder.parent.name not in _NO_STAGES and _KEY.fullmatch(folder.name)
        ]

    def stamps(self) -> dict[Path, tuple[int, int, int] | None]:
        """Folder of every artifact -> its stamp, which changes when it is committed or built again."""
        return {folder: Artifact("", "", folder).stamp for folder in self._folders()}

    def artifacts(self, stage: str | None = None) -> Iterator[tuple[Artifact, State]]:
        """Every artifact in the store, or of one stage, with its state, sorted by stage and then by age."""
        for folder in sorted(self._folders(stage), key=lambda path: (path.parent.name, changed_at(path))):
            artifact = Artifact(folder.parent.name, self.key_of(folder), folder)
            if not artifact.is_committed:
                yield artifact, "partial"
            else:
                yield artifact, "damaged" if artifact.fault() else "committed"

    def committed(self, stage: str | None = None) -> list[Artifact]:
        """The committed artifacts, of all stages or of one, whose files have the right sizes."""
        return [artifact for artifact, state in self.artifacts(stage) if state == "committed"]

    def readable(self, stage: str) -> list[Artifact]:
        """The artifacts of a stage whose manifests can be read. Their other files are not looked at."""
        found = []
        for folder in sorted(self._folders(stage)):
            artifact = Artifact(stage, self.key_of(folder), folder)
            with contextlib.suppress(UserError):
                artifact.manifest  # noqa: B018 (reading it checks it)
                found.append(artifact)
        return found

    @staticmethod
    def key_of(folder: Path) -> str:
        """The key that the manifest in an artifact's folder has, or else the folder's name."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            return str(parse_json(read_regular(folder / MANIFEST))["key"])
        return folder.name

    def free_bytes(self) -> int:
        """Free bytes on the disk of the store, whose folder need not exist yet."""
        return shutil.disk_usage(nearest_folder(self.root)).free

    @property
    def records(self) -> Records:
        return Records(self.root / _EXPERIMENTS, self.root / _LOCKS)

    def open_log(self, name: str) -> TextIO:
        """A new log file for a run of the experiment `name`, see `run_logs`. Raises OSError if it cannot be made."""
        return run_logs.open_log(self.root / _LOGS, name)

    @property
    def run_marks(self) -> RunMarks:
        return RunMarks(self.root / _LOCKS)

    def sweep(self) -> None:
        """Deletes lock files that no artifact needs and nobody holds, notes that no record needs, and temporary
        files of records.

        The caller must hold the records.
        """
        needed = {
            self._lock(Artifact(folder.parent.name, folder.name, folder), kind).name
            for folder in self._folders()
            for kind in (_BUILD, _READ)
        }
        for path in (self.root / _LOCKS).glob("*"):
            # What a killed run left is for the next run, which tells the server.
            is_needed = path.name in needed or path.name == Records.LOCK or path.suffix == run_marks.SUFFIX
            if not is_needed:
                with contextlib.suppress(Busy), lock(path, refuse):
                    path.unlink(missing_ok=True)
        recorded = {
            self._note(self.at(node.stage, node.key)).name
            for record in self.records.all().values()
            for node in record.nodes.values()
        }
        for path in (self.root / _DROPPED).glob("*"):
            if path.name not in recorded:
                remove(path)
        remove_temporaries(self.root / _EXPERIMENTS)


def _defined(value: float | int | str | None) -> float | int | str | None:
    """None in place of NaN or infinity, such as a share of nothing: JSON has no numbers for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
