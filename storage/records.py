"""The records that a store keeps of its experiments: their configs, and the artifact of each of their nodes.

`pipeline.experiment.run` writes them. `patchsae gc`, `pipeline.results` and the Python API read them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from patchsae.storage.atomic import explaining_full_disk, remove, remove_temporaries, write_atomic
from patchsae.storage.errors import UserError
from patchsae.storage.files import changed_at, read_regular
from patchsae.storage.keys import canonical_json, digest_json, parse_json
from patchsae.storage.locks import Busy, lock, refuse

_DIGITS = 8

NAMES = ("dataset", "backbone", "sae", "evaluation")
"""The sections of an experiment whose entries an artifact can be about. Tables get a column of each name."""


@dataclass(frozen=True)
class RecordedNode:
    """A stage instance and its artifact.

    `names` maps some of `NAMES` to the entries that the artifact is about. `inputs` maps a role to an
    address.
    """

    stage: str
    key: str
    names: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ExperimentRecord:
    """The nodes of an experiment by their addresses, and the experiment itself.

    `experiment` is the whole resolved experiment as JSON values; None in records of old stores.
    """

    nodes: Mapping[str, RecordedNode]
    experiment: dict[str, Any] | None = None

    @cached_property
    def content(self) -> str:
        """A digest of the experiment, by which records are told apart; in records of old stores, of the nodes."""
        if self.experiment is None:
            return digest_json({address: asdict(node) for address, node in self.nodes.items()})
        return digest_json(self.experiment)

    def to_json(self) -> bytes:
        body = {
            "experiment": self.experiment,
            "nodes": {address: asdict(node) for address, node in self.nodes.items()},
        }
        return canonical_json({**body, "digest": digest_json(body)}).encode()

    @classmethod
    def of_json(cls, data: bytes) -> ExperimentRecord:
        """Reads a record, also of an older version. Raises ValueError if `data` is not a record."""
        body = parse_json(data)
        try:
            if "nodes" not in body:
                # The format of older versions, which did not hold the experiment: address -> [stage, key].
                if not body or not all(isinstance(word, str) for node in body.values() for word in node):
                    raise ValueError("it names no artifacts")
                return cls({a: RecordedNode(s, k, _names_of(a)) for a, (s, k) in body.items()})
            # Records of older versions have no digest.
            claimed = body.pop("digest", None)
            if body.keys() != {"nodes", "experiment"} or claimed not in (None, digest_json(body)):
                raise ValueError("it was edited or damaged")
            if not body["nodes"] or not all(_is_node(node) for node in body["nodes"].values()):
                raise ValueError("its nodes are not those of an experiment")
            return cls({a: RecordedNode(**node) for a, node in body["nodes"].items()}, body["experiment"])
        except (TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"it is no record: {error}") from None


class Records:
    """The records of a store, in the files `NAME.json` of `folder`.

    The newest experiment of a name has the file `NAME.json`. An experiment of the same name with another
    content, such as an earlier version of the YAML file, has `NAME-DIGEST.json`. Nobody else deletes artifacts
    while a record is written, and nobody writes records while artifacts are deleted: both hold one lock.
    """

    LOCK = "experiments.lock"

    def __init__(self, folder: Path, locks: Path) -> None:
        self._folder = folder
        self._locks = locks

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    @contextlib.contextmanager
    def held(self, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Keeps all records as they are. If another process does, calls `on_wait` and waits."""
        with explaining_full_disk(self._folder), lock(self._locks / self.LOCK, on_wait):
            yield

    def drop(self, path: Path) -> None:
        """Deletes a file of a record if it still cannot be read."""
        with self.held():
            if path != self._folder and self._read(path.stem) is None:
                remove(path)

    @contextlib.contextmanager
    def running(self, record: ExperimentRecord) -> Iterator[None]:
        """Keeps the record of an experiment from being forgotten while it runs."""
        with lock(self._running(record), shared=True):
            yield

    def _running(self, record: ExperimentRecord) -> Path:
        return self._locks / f"run-{record.content[:16]}.lock"

    def _names(self) -> list[str]:
        """The names of all records. Raises OSError if they cannot be listed, unless there is nothing."""
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 (raises an error, unlike a loop over no path)
        except FileNotFoundError:
            if self._folder.is_symlink():
                raise
            return []
        return sorted(
            name.removesuffix(".json") for name in names if name.endswith(".json") and name[0] != "."
        )

    def changed_at(self) -> dict[str, float]:
        """Name of every record -> when it was last written, in seconds since 1970."""
        try:
            return {name: changed_at(self._file(name)) for name in self._names()}
        except OSError:
            return {}

    def _read(self, name: str) -> ExperimentRecord | None:
        """The record of this name. None if there is none or it cannot be read."""
        try:
            return ExperimentRecord.of_json(read_regular(self._file(name)))
        except (OSError, ValueError):
            return None

    def all(self) -> dict[str, ExperimentRecord]:
        """Every record that can be read, by its name."""
        try:
            found = {name: self._read(name) for name in self._names()}
        except OSError:
            return {}
        return {name: record for name, record in found.items() if record is not None}

    def current(self) -> dict[str, ExperimentRecord]:
        """The records without those of earlier versions of an experiment, by their names."""
        return current_of(self.all())

    def of_name(self, name: str) -> list[ExperimentRecord]:
        """The records of a name, with those of `--set` and of earlier versions, as far as they can be read."""
        try:
            names = [one for one in self._names() if one == name or one.startswith(f"{name}-")]
        except OSError:
            return []
        return [record for one in names if (record := self._read(one)) is not None]

    def faults(self) -> list[tuple[Path, str]]:
        """The files that cannot be read as records, each with a sentence."""
        try:
            unreadable = [self._file(name) for name in self._names() if self._read(name) is None]
        except OSError as error:
            return [
                (self._folder, f"{self._folder}: the records cannot be listed ({error.strerror}); mend that.")
            ]
        return [
            (
                path,
                f"{path}: is not readable as the record of an experiment; delete it with `patchsae verify --discard`, "
                "and run its experiment again, which writes it anew.",
            )
            for path in unreadable
        ]

    def of(self, name: str, record: ExperimentRecord) -> ExperimentRecord | None:
        """The last record of the same experiment, under this name or, with a digest, under a longer one."""
        for known in (name, _longer(name, record)):
            there = self._read(known)
            if there is not None and there.content == record.content:
                return there
        return None

    def write(
        self, name: str, record: ExperimentRecord, newest: bool, on_wait: Callable[[], None] | None = None
    ) -> None:
        """Writes the record of an experiment.

        With `newest` it becomes the one of this name; a record of another experiment that had the name is
        kept under a longer one. If artifacts are being deleted, calls `on_wait` and waits.
        """
        with self.held(on_wait):
            remove_temporaries(self._folder)
            other, longer = self._read(name), _longer(name, record)
            if other is not None and other.content != record.content:
                if not newest and self._file(longer).exists():
                    write_atomic(self._file(longer), record.to_json())
                    return
                write_atomic(self._file(_longer(name, other)), other.to_json())
            write_atomic(self._file(name), record.to_json())
            remove(self._file(longer))

    def forget(self, name: str) -> None:
        """Deletes a record, so that `patchsae gc` may delete artifacts only it needed.

        Raises UserError if there is no record of that name, or if the experiment is running.
        """
        with self.held():
            record = self.all().get(name)
            if record is None:
                known = ", ".join(self.all()) or "none"
                raise UserError(f"{self._folder.parent}: no recorded run `{name}` (recorded: {known}).")
            try:
                with lock(self._running(record), refuse):
                    remove(self._file(name))
            except Busy:
                raise UserError(f"{name}: is running; let it end before its record is forgotten.") from None


def current_of(records: Mapping[str, ExperimentRecord]) -> dict[str, ExperimentRecord]:
    """Of some records by their names, those that are not of an earlier version of an experiment."""
    return {name: record for name, record in records.items() if not _is_earlier(name, record, records)}


def _is_node(node: dict[str, Any]) -> bool:
    """Whether the values of a node are texts, and mappings of texts to texts."""
    texts = [
        node["stage"],
        node["key"],
        *(t for m in ("names", "inputs") for pair in node[m].items() for t in pair),
    ]
    return all(isinstance(text, str) for text in texts)


def _longer(name: str, record: ExperimentRecord) -> str:
    return f"{name}{_digits(record)}"


def _is_earlier(name: str, record: ExperimentRecord, names: Container[str]) -> bool:
    """Whether `name` is what `_longer` made of one of `names` for this record."""
    digits = _digits(record)
    return name.endswith(digits) and name.removesuffix(digits) in names


def _digits(record: ExperimentRecord) -> str:
    return f"-{record.content[:_DIGITS]}"


def _names_of(address: str) -> dict[str, str]:
    """The entries that a node is about, as far as its address names them; for records of old stores."""
    stage, _, name = address.partition("/")
    kinds = {"index": "dataset", "weights": "backbone", "train": "sae", "import": "sae"}
    evaluations = ("statistics", "masking", "reconstruction", "frontier")
    kind = kinds.get(stage) or ("evaluation" if stage in evaluations else None)
    return {kind: name} if kind else {}
