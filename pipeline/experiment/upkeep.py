"""Finds and deletes damaged and unneeded artifacts of a store, for `patchsae verify` and `patchsae gc`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.provenance import MADE_FROM
from patchsae.pipeline.experiment.experiment import PRESETS, load
from patchsae.pipeline.experiment.kinds import STAGES
from patchsae.pipeline.experiment.plan import Planner
from patchsae.storage.artifacts import Artifact
from patchsae.storage.atomic import remove
from patchsae.storage.errors import UserError
from patchsae.storage.locks import Busy, refuse
from patchsae.storage.manifest import KEY_DIGITS
from patchsae.storage.store import State, Store


@dataclass(frozen=True)
class Damage:
    """What is wrong with an artifact. `files` are relative to it; none are named if the manifest is bad.

    `made_from_it` are artifacts that are dropped with it: what is computed in its place may differ from it.
    """

    artifact: Artifact
    files: list[str]
    sentence: str
    made_from_it: list[Artifact] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """What `verify` found.

    `records` are files that cannot be read as records, each with a sentence. `unreadable` are sentences about
    what could not be looked at.
    """

    damages: list[Damage]
    records: list[tuple[Path, str]]
    unreadable: list[str]

    @property
    def sentences(self) -> list[str]:
        return [
            *(damage.sentence for damage in self.damages),
            *(sentence for _, sentence in self.records),
            *self.unreadable,
        ]


def verify(store: Store, reporter: Reporter) -> Found:
    """Recomputes the digest of every file of every committed artifact, and returns what is damaged.

    Raises UserError if the store is not there or cannot be read.
    """
    store.check_readable()
    bad: list[Damage] = []
    sound: list[Artifact] = []
    for artifact, state in store.artifacts():
        if state == "partial":
            continue
        try:
            artifact.manifest  # noqa: B018 (reading it checks it)
        except UserError as error:
            bad.append(Damage(artifact, [], str(error)))
        else:
            sound.append(artifact)
    n_files = sum(len(artifact.manifest.outputs) for artifact in sound)
    with reporter.bar("verify", n_files, "files") as bar:
        for artifact in sound:
            bar.advance(0, artifact.stage)
            if artifact.damaged_files(bar.advance) and (damage := _damage_of(store, artifact)):
                bad.append(damage)
    return Found([_with_what_follows(one, sound) for one in bad], store.records.faults(), store.faults())


def _damage_of(store: Store, artifact: Artifact) -> Damage | None:
    """What is wrong with an artifact now, by its manifest as it is now; None if nothing is, or if it is gone."""
    now = Artifact(artifact.stage, store.key_of(artifact.path), artifact.path)
    if not now.is_committed:
        return None
    try:
        files = now.damaged_files()
    except UserError as error:
        return Damage(now, [], str(error))
    if not files:
        return None
    paths = ", ".join(f"{now.path}/{name}" for name in files)
    return Damage(now, files, f"{paths}: not what was written (digest or size differ).")


def _with_what_follows(damage: Damage, sound: Sequence[Artifact]) -> Damage:
    """`damage` with the artifacts that must be dropped with it.

    Nothing follows from a damaged shard: reading it is an error, and its part alone is computed again. What
    was made from an index or from weights is kept if it was made by a version that compares its inputs with
    their digests, since what is identified by its content comes back equal or under another key.
    """
    if _costs_only_parts(damage):
        return damage
    by_content = (
        STAGES[damage.artifact.stage].identified_by_content if damage.artifact.stage in STAGES else False
    )
    return Damage(
        damage.artifact,
        damage.files,
        damage.sentence,
        [
            artifact
            for artifact in _made_from(damage.artifact, sound)
            if not (by_content and MADE_FROM in artifact.manifest.provenance)
        ],
    )


def _costs_only_parts(damage: Damage) -> bool:
    """Whether the next run computes some parts again and takes the other files as they are."""
    ledger = damage.artifact.ledger
    in_parts = {file.path for part in ledger.parts() for file in ledger.files(part)}
    kept = {path for path in in_parts if damage.artifact.path.joinpath(path).exists()}
    return bool(kept) and all(
        name in in_parts or name.startswith("ledger/") or name.endswith("zarr.json") for name in damage.files
    )


def _made_from(artifact: Artifact, sound: Sequence[Artifact]) -> Iterator[Artifact]:
    """Every artifact that was made from one, directly or through others.

    The first digits of keys are compared, since the name of the folder tells no more if the manifest is damaged.
    """
    wanted = {artifact.path.name}
    with contextlib.suppress(UserError):
        wanted.add(artifact.identity[:KEY_DIGITS])
    left = list(sound)
    while True:
        follows = [one for one in left if wanted & {i[:KEY_DIGITS] for i in one.manifest.inputs.values()}]
        if not follows:
            return
        yield from follows
        wanted |= {one.identity[:KEY_DIGITS] for one in follows}
        left = [one for one in left if one not in follows]


@dataclass(frozen=True)
class Dropped:
    """What `drop_damaged` did. `left` are the artifacts that it could not drop, each with a sentence."""

    damaged: list[Artifact]
    made_from_them: list[Artifact]
    left: dict[Artifact, str]


def drop_damaged(store: Store, found: Found) -> Dropped:
    """Makes the next run compute what is damaged again.

    Deletes damaged files with their ledger entries and manifests, what was made from them, and records that
    cannot be read.
    """
    dropped = Dropped([], [], {})
    for damage in found.damages:
        # A run may have mended it since it was found, or built it again.
        if _damage_of(store, damage.artifact) is None:
            continue
        # What follows goes first: a process killed in between leaves the damage, which is found again.
        for artifact in damage.made_from_it:
            if artifact not in dropped.made_from_them:
                _try(store, artifact, _discard_with_note, dropped.made_from_them, dropped.left)
        if any(artifact in dropped.left for artifact in damage.made_from_it):
            dropped.left[damage.artifact] = "what was made from it must be dropped first"
            continue
        _try(store, damage.artifact, _drop, dropped.damaged, dropped.left)
    for path, _ in found.records:
        store.records.drop(path)
    return dropped


def _drop(store: Store, artifact: Artifact) -> None:
    damage = _damage_of(store, artifact)
    if damage is not None:
        store.note_dropped(artifact, "was damaged, and dropped by `verify --discard`")
        store.drop(damage.artifact, refuse)
        store.drop_files(damage.artifact, damage.files)


Act = Callable[[Store, Artifact], None]


def _try(store: Store, artifact: Artifact, act: Act, done: list[Artifact], left: dict[Artifact, str]) -> None:
    """Acts on an artifact, and notes that it did or why it could not."""
    try:
        if _alone(store, artifact, act):
            done.append(artifact)
        else:
            left[artifact] = "a process builds or reads it; try again when it has ended"
    except UserError as error:
        left[artifact] = str(error)


def _discard_with_note(store: Store, artifact: Artifact) -> None:
    store.note_dropped(artifact, "was dropped by `verify --discard` with the damaged one it was made from")
    store.discard(artifact, refuse)


def _discard(store: Store, artifact: Artifact) -> None:
    store.discard(artifact, refuse)


def _alone(store: Store, artifact: Artifact, act: Act) -> bool:
    """Acts on an artifact that no process builds or reads. Returns whether it did."""
    try:
        with store.building(artifact, refuse):
            act(store, artifact)
    except Busy:
        return False
    return True


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
    for sentence in [sentence for _, sentence in store.records.faults()] + store.faults():
        raise UserError(f"{sentence} Nothing is deleted before that.")
    recorded = _recorded(store)
    reached = _reached_by_presets(store)
    found = []
    for artifact, state in store.artifacts():
        name = artifact.path.name
        if state == "partial" and store.is_being_built(artifact):
            continue
        if state == "partial" and not _done(artifact):
            found.append(Unneeded(artifact, state, artifact.n_bytes(), "failed or killed, with nothing done"))
        elif name not in recorded and (state == "partial" or name not in reached):
            done = f"{_done(artifact)}; " if state == "partial" else ""
            found.append(Unneeded(artifact, state, artifact.n_bytes(), f"{done}no record needs it"))
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
        for item in Planner(store).plan(load(preset.stem).nodes()).values():
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
                act = _discard if item.state in ("committed", "partial", "damaged") else _clear
                (deleted if _alone(store, item.artifact, act) else busy).append(item)
        store.sweep()
    return deleted, busy


def _clear(store: Store, artifact: Artifact) -> None:
    """Deletes what a killed process left of an artifact, and finishes a rebuild that was finished."""
    store.settle(artifact, refuse)
    for left in store.leftovers(artifact):
        for path in left.paths:
            remove(path)
