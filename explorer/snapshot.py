"""`Snapshot`: the artifacts and records of a store at one moment, and what was made from what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from patchsae.pipeline.results.places import Place
from patchsae.storage.artifacts import Artifact
from patchsae.storage.files import REMEDY
from patchsae.storage.keys import digest_json
from patchsae.storage.manifest import KEY_DIGITS
from patchsae.storage.records import ExperimentRecord
from patchsae.storage.store import State, Store

Stamp = tuple[int, int, int] | None


@dataclass(frozen=True)
class Fingerprint:
    """What differs when an artifact or a record was written, built again or deleted. No file is read for it."""

    artifacts: Mapping[Path, Stamp]
    """Folder of every artifact -> its stamp."""
    records: Mapping[str, float]
    """Name of every record -> when it was written, in seconds since 1970."""

    @classmethod
    def of(cls, store: Store) -> Fingerprint:
        return cls(store.stamps(), store.records.changed_at())

    @cached_property
    def digest(self) -> str:
        stamps = {str(folder): list(stamp or ()) for folder, stamp in self.artifacts.items()}
        return digest_json([stamps, dict(self.records)])[:KEY_DIGITS]


@dataclass(frozen=True)
class Held:
    """An artifact that the store holds, as it was at `stamp`. `fault` says how it is damaged, if it is."""

    artifact: Artifact
    state: State
    stamp: Stamp
    fault: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """What a store held when it had the fingerprint `at`."""

    at: Fingerprint
    held: Mapping[tuple[str, str], Held]
    """(stage, first 16 digits of the key) -> the artifact; those made first come first."""
    records: Mapping[str, ExperimentRecord]
    """Every record by its name, with those of earlier versions of an experiment."""
    unreadable: tuple[str, ...]
    """A sentence for every record that cannot be read."""

    @classmethod
    def take(cls, store: Store, at: Fingerprint, before: Snapshot | None = None) -> Snapshot:
        """The snapshot of a store. Manifests that are as they were in `before` are not read again."""
        known = {} if before is None else {one.artifact.path: one for one in before.held.values()}
        held = {}
        for folder, stamp in sorted(at.artifacts.items(), key=lambda item: item[1] or (0, 0, 0)):
            found = known.get(folder)
            if found is None or found.stamp != stamp or found.state == "damaged":
                found = _look(store, folder, stamp)
            held[folder.parent.name, folder.name] = found
        unreadable = tuple(sentence for _, sentence in store.records.faults())
        return cls(at, held, store.records.all(), unreadable)

    @property
    def problems(self) -> list[str]:
        """A sentence for every record that cannot be read and every damaged artifact."""
        return [*self.unreadable, *(one.fault for one in self.held.values() if one.fault)]

    def find(self, stage: str, key: str) -> Held | None:
        """The artifact of a stage whose key is, or begins with the 16 digits, `key`."""
        return self.held.get((stage, key[:KEY_DIGITS]))

    def committed(self, *stages: str) -> list[Artifact]:
        """The usable artifacts of some stages, those made first in front."""
        return [
            one.artifact
            for (stage, _), one in self.held.items()
            if stage in stages and one.state == "committed"
        ]

    @cached_property
    def _by_identity(self) -> Mapping[tuple[str, str], Artifact]:
        # Of several that are equal, the newest: they differ in where images or weights were found.
        return {
            (stage, one.artifact.identity): one.artifact
            for (stage, _), one in self.held.items()
            if one.state == "committed"
        }

    def input_of(self, artifact: Artifact, role: str, stage: str) -> Artifact | None:
        """The artifact of `stage` that filled `role` when `artifact` was made; None if the store has it no longer."""
        identity = artifact.manifest.inputs.get(role)
        return None if identity is None else self._by_identity.get((stage, identity))

    @cached_property
    def _places(self) -> Mapping[tuple[str, str], list[Place]]:
        found: dict[tuple[str, str], list[Place]] = {}
        for experiment, record in self.records.items():
            for address, node in record.nodes.items():
                found.setdefault((node.stage, node.key[:KEY_DIGITS]), []).append(
                    Place(experiment, record, node, address)
                )
        return found

    def places(self, stage: str, key: str) -> list[Place]:
        """Where the artifact of a stage and key has a name; what was recorded last comes first."""
        found = self._places.get((stage, key[:KEY_DIGITS]), [])
        return sorted(found, key=lambda place: -self.at.records.get(place.experiment, 0.0))


def _look(store: Store, folder: Path, stamp: Stamp) -> Held:
    artifact = Artifact(folder.parent.name, store.key_of(folder), folder)
    if not artifact.is_committed:
        return Held(artifact, "partial", stamp)
    fault = artifact.fault()
    if fault is not None and REMEDY not in fault:
        fault = f"{fault}; run its experiment again, which completes it."
    return Held(artifact, "damaged" if fault else "committed", stamp, fault)
