"""Finds the damaged artifacts of a store, and drops them with what was made from them, for `patchsae verify`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.provenance import MADE_FROM
from patchsae.pipeline.experiment.kinds import STAGES
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.locks import Busy, refuse
from patchsae.storage.manifest import KEY_DIGITS
from patchsae.storage.store import Store


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
            files = artifact.damaged_files(bar.advance)
            if files and (damage := _damage_of(store, artifact, files)):
                bad.append(damage)
    return Found([_with_what_follows(one, sound) for one in bad], store.records.faults(), store.faults())


def _damage_of(store: Store, artifact: Artifact, files: Sequence[str]) -> Damage | None:
    """What is wrong with an artifact now, by its manifest as it is now; None if nothing is, or if it is gone.

    `files` are those that were damaged by the manifest that `artifact` was opened with. As long as it has that one,
    only they are read again.
    """
    now = Artifact(artifact.stage, store.key_of(artifact.path), artifact.path)
    if not now.is_committed:
        return None
    try:
        is_same = bool(files) and now.manifest.digest == artifact.manifest.digest
        damaged = now.damaged_files(among=files if is_same else None)
    except UserError as error:
        return Damage(now, [], str(error))
    if not damaged:
        return None
    paths = ", ".join(f"{now.path}/{name}" for name in damaged)
    return Damage(now, damaged, f"{paths}: not what was written (digest or size differ).")


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
        if _damage_of(store, damage.artifact, damage.files) is None:
            continue
        # What follows goes first: a process killed in between leaves the damage, which is found again.
        for artifact in damage.made_from_it:
            if artifact not in dropped.made_from_them:
                _try(
                    store, artifact, partial(_discard, store, artifact), dropped.made_from_them, dropped.left
                )
        if any(artifact in dropped.left for artifact in damage.made_from_it):
            dropped.left[damage.artifact] = "what was made from it must be dropped first"
            continue
        _try(store, damage.artifact, partial(_drop, store, damage), dropped.damaged, dropped.left)
    for path, _ in found.records:
        store.records.drop(path)
    return dropped


def _drop(store: Store, damage: Damage) -> None:
    now = _damage_of(store, damage.artifact, damage.files)
    if now is not None:
        store.note_dropped(now.artifact, "was damaged, and dropped by `verify --discard`")
        store.drop(now.artifact, refuse)
        store.drop_files(now.artifact, now.files)


def _discard(store: Store, artifact: Artifact) -> None:
    store.note_dropped(artifact, "was dropped by `verify --discard` with the damaged one it was made from")
    store.discard(artifact, refuse)


def _try(
    store: Store,
    artifact: Artifact,
    act: Callable[[], None],
    done: list[Artifact],
    left: dict[Artifact, str],
) -> None:
    """Acts on an artifact that no process builds or reads, and notes that it did or why it could not."""
    try:
        with store.building(artifact, refuse):
            act()
    except Busy:
        left[artifact] = "a process builds or reads it; try again when it has ended"
    except UserError as error:
        left[artifact] = str(error)
    else:
        done.append(artifact)
