"""Finds and deletes the artifacts that nothing needs, and what killed processes left, for `patchsae gc`."""

from __future__ import annotations

from dataclasses import dataclass

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.experiment.experiment import PRESETS, load
from patchsae.pipeline.experiment.plan import Planner
from patchsae.storage.artifacts import Artifact
from patchsae.storage.atomic import remove
from patchsae.storage.errors import UserError
from patchsae.storage.locks import Busy, refuse
from patchsae.storage.store import State, Store


@dataclass(frozen=True)
class Unneeded:
    """An artifact that nothing needs, or what a killed process left of one.

    `state` says which: the state of the artifact, or what the leftovers are. `why` says why nothing needs it.
    """

    artifact: Artifact
    state: State | str
    n_bytes: int
    why: str


@dataclass(frozen=True)
class Unfinished:
    """An unfinished artifact that is kept for the experiments with the records `names`. `done` says what it has."""

    artifact: Artifact
    n_bytes: int
    done: str
    names: list[str]


def unneeded(store: Store) -> list[Unneeded]:
    """The artifacts that no preset and no recorded experiment needs, and what killed processes left.

    Of an unfinished artifact nothing is needed if no part and no checkpoint is done, or if only a preset leads
    there. One that is being built is left out. Raises UserError if a record cannot be read, since what it needs is
    not known.
    """
    if faults := [*(sentence for _, sentence in store.records.faults()), *store.faults()]:
        raise UserError(f"{faults[0]} Nothing is deleted before that.")
    recorded = _recorded(store)
    reached = _reached_by_presets(store)
    found = []
    for artifact, state in store.artifacts():
        name = artifact.path.name
        if state == "partial" and store.is_being_built(artifact):
            continue
        done = _done(artifact) if state == "partial" else ""
        if state == "partial" and not done:
            found.append(Unneeded(artifact, state, artifact.n_bytes(), "failed or killed, with nothing done"))
        elif name not in recorded and (state == "partial" or name not in reached):
            why = f"{done}; no record needs it" if done else "no record needs it"
            found.append(Unneeded(artifact, state, artifact.n_bytes(), why))
        else:
            found += _left_of(store, artifact)
    return [*found, *(left for orphan in store.orphans() for left in _left_of(store, orphan))]


def unfinished(store: Store) -> list[Unfinished]:
    """The unfinished artifacts that are kept because a recorded experiment would go on with them.

    Those that are being built are left out.
    """
    recorded = _recorded(store)
    return [
        Unfinished(artifact, artifact.n_bytes(), done, recorded[artifact.path.name])
        for artifact, state in store.artifacts()
        if state == "partial" and artifact.path.name in recorded
        if not store.is_being_built(artifact) and (done := _done(artifact))
    ]


def _done(artifact: Artifact) -> str:
    """What a run would go on with: parts or a checkpoint; empty if there is nothing."""
    step = artifact.checkpoints.latest_step()
    if step is not None:
        return f"checkpoint of step {step:,}"
    n_parts = artifact.ledger.n_done()
    return f"{n_parts:,} parts" if n_parts else ""


def _recorded(store: Store) -> dict[str, list[str]]:
    """The folder name of every artifact that a record leads to -> the names of the records."""
    found: dict[str, list[str]] = {}
    for name, record in store.records.all().items():
        for folder in {store.at(node.stage, node.key).path.name for node in record.nodes.values()}:
            found.setdefault(folder, []).append(name)
    return found


def _left_of(store: Store, artifact: Artifact) -> list[Unneeded]:
    why = "left by a killed process"
    return [Unneeded(artifact, one.what, one.n_bytes(), why) for one in store.leftovers(artifact)]


def _reached_by_presets(store: Store) -> set[str]:
    """The folder names of the artifacts that presets need.

    A node whose key is not known, because its data are not on this machine, adds none.
    """
    reached = set()
    for preset in sorted(PRESETS.glob("*.yaml")):
        for item in Planner(store).plan(load(preset.stem).nodes(), explain=False).values():
            if item.key is not None:
                reached.add(store.at(item.node.stage.name, item.key).path.name)
    return reached


def delete_unneeded(store: Store, reporter: Reporter | None = None) -> tuple[list[Unneeded], list[Unneeded]]:
    """Deletes what `unneeded` lists. Returns what was deleted, and what was left because a process uses it.

    No run can record what it needs meanwhile: it waits, and then looks up anew what there is.
    """
    deleted: list[Unneeded] = []
    busy: list[Unneeded] = []
    with store.records.held():
        items = unneeded(store)
        with (reporter if reporter and items else Reporter()).bar("gc", len(items), "artifacts") as bar:
            for item in bar.over(items):
                try:
                    _delete(store, item)
                except Busy:
                    busy.append(item)
                else:
                    deleted.append(item)
        store.sweep()
    return deleted, busy


def _delete(store: Store, item: Unneeded) -> None:
    """Deletes an artifact, or what a killed process left of one; finishes a rebuild that was finished.

    Raises Busy if a process builds or reads it.
    """
    with store.building(item.artifact, refuse):
        if item.state in ("committed", "partial", "damaged"):
            store.discard(item.artifact, refuse)
            return
        store.settle(item.artifact, refuse)
        for left in store.leftovers(item.artifact):
            for path in left.paths:
                remove(path)
