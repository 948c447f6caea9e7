"""Finds and deletes damaged and unneeded artifacts of a store, for `patchsae verify` and `patchsae gc`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.experiment.experiment import PRESETS, load
from patchsae.pipeline.experiment.plan import Planner
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import State, Store


@dataclass(frozen=True)
class Damage:
    """What is wrong with an artifact. `files` are relative to it; none are named if the manifest is bad."""

    artifact: Artifact
    files: list[str]
    sentence: str


def verify(store: Store, reporter: Reporter) -> list[Damage]:
    """Recomputes the digest of every file of every committed artifact, and returns what is damaged."""
    found: list[Damage] = []
    sound: list[Artifact] = []
    for artifact, state in store.artifacts():
        if state == "partial":
            continue
        try:
            artifact.manifest  # noqa: B018 (reading it checks it)
        except UserError as error:
            found.append(Damage(artifact, [], str(error)))
        else:
            sound.append(artifact)
    n_files = sum(len(artifact.manifest.outputs) for artifact in sound)
    with reporter.bar("verify", n_files, "files") as bar:
        for artifact in sound:
            bar.advance(0, artifact.stage)
            files = artifact.damaged_files(bar.advance)
            if files:
                paths = ", ".join(f"{artifact.path}/{name}" for name in files)
                found.append(
                    Damage(artifact, files, f"{paths}: not what was written (digest or size differ).")
                )
    return found


def drop_damaged(store: Store, damages: Sequence[Damage]) -> None:
    """Makes the next run compute the damaged parts again: deletes their ledger entries and the manifests."""
    for damage in damages:
        with store.locked(damage.artifact):
            for file in damage.files:
                damage.artifact.ledger.forget(file)
            store.uncommit(damage.artifact)


@dataclass(frozen=True)
class Unreachable:
    """An artifact that no preset and no recorded experiment needs."""

    artifact: Artifact
    state: State
    n_bytes: int


def unreachable(store: Store) -> list[Unreachable]:
    """The artifacts, finished or not, that no preset and no recorded experiment needs."""
    needed = _reached_by_presets(store)
    for record in store.experiments().values():
        needed |= {store.at(node.stage, node.key).path.name for node in record.nodes.values()}
    return [
        Unreachable(artifact, state, artifact.n_bytes())
        for artifact, state in store.artifacts()
        if artifact.path.name not in needed
    ]


def _reached_by_presets(store: Store) -> set[str]:
    """The folder names of the artifacts that presets need.

    A node whose key is not known, because its data are not on this machine, adds none.
    """
    reached = set()
    for preset in sorted(PRESETS.glob("*.yaml")):
        for item in Planner(store).plan(load(preset.stem).nodes()).values():
            if item.key is not None:
                reached.add(store.at(item.node.stage.name, item.key).path.name)
    return reached


class _Busy(Exception):
    """Another process is building the artifact."""


def delete(store: Store, items: Sequence[Unreachable]) -> tuple[list[Unreachable], list[Unreachable]]:
    """Deletes artifacts. Returns the deleted ones, and those left because a process is building them."""

    def refuse() -> None:
        raise _Busy

    deleted, busy = [], []
    for item in items:
        try:
            with store.locked(item.artifact, refuse):
                store.discard(item.artifact)
        except _Busy:
            busy.append(item)
        else:
            deleted.append(item)
    return deleted, busy
