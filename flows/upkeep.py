"""Looking after a store: is everything in it what was written, and what does nobody need any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.request import PRESETS
from pipeline import dag, plan
from pipeline.experiment import load
from pipeline.progress import Reporter
from storage.artifacts import Artifact, State, Store
from storage.errors import UserError


@dataclass(frozen=True)
class Damage:
    """What is wrong with an artifact; `files` are relative to it, and empty if its manifest is at fault."""

    artifact: Artifact
    files: list[str]
    sentence: str


def verify(store: Store, reporter: Reporter) -> list[Damage]:
    """Recomputes the digest of every file of every committed artifact."""
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
                paths = ", ".join(str(artifact.path / name) for name in files)
                found.append(
                    Damage(artifact, files, f"{paths}: not what was written (digest or size differ).")
                )
    return found


def drop_damaged(store: Store, damages: Sequence[Damage]) -> None:
    """Forgets the parts that are damaged, so that the next run does those again and keeps the others."""
    for damage in damages:
        with store.locked(damage.artifact):
            for file in damage.files:
                damage.artifact.ledger.forget(file)
            store.uncommit(damage.artifact)


@dataclass(frozen=True)
class Unreachable:
    """An artifact no preset and no recorded run leads to."""

    artifact: Artifact
    state: State
    n_bytes: int


def unreachable(store: Store) -> list[Unreachable]:
    """The artifacts that neither a preset nor a recorded run needs, unfinished ones included."""
    needed = _reached_by_presets(store)
    for artifacts in store.experiments().values():
        needed |= {store.at(stage, key).path.name for stage, key in artifacts.values()}
    return [
        Unreachable(artifact, state, artifact.n_bytes())
        for artifact, state in store.artifacts()
        if artifact.path.name not in needed
    ]


def _reached_by_presets(store: Store) -> set[str]:
    """Folder names of what the presets lead to; one that cannot be planned here (no data) leads to less."""
    reached = set()
    for preset in sorted(PRESETS.glob("*.yaml")):
        for item in plan.plan(store, dag.build(load(preset.stem, PRESETS))).values():
            if item.key is not None:
                reached.add(store.at(item.node.stage.name, item.key).path.name)
    return reached


class _Busy(Exception):
    """Another process is building the artifact."""


def delete(store: Store, items: Sequence[Unreachable]) -> tuple[list[Unreachable], list[Unreachable]]:
    """Deletes artifacts; returns those deleted and those left because a process is building them."""

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
