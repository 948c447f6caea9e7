"""Finds an artifact by its address in an experiment or the first digits of its key, as users name it."""

from __future__ import annotations

from collections.abc import Sequence

from patchsae.pipeline.core.text import nearest
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.records import ExperimentRecord
from patchsae.storage.store import Store

SAE_STAGES = ("train", "import")
_DIGITS = 4


def records_of(store: Store, experiment: str | None) -> dict[str, ExperimentRecord]:
    """The records that names are looked up in: that of one experiment, or all current ones.

    An earlier version of an experiment has a record too, which is looked up only if it is named. Raises UserError if
    there is no experiment of that name.
    """
    if experiment is None:
        return store.records.current()
    known = store.records.all()
    if experiment not in known:
        raise UserError(f"{store.root}: no experiment `{experiment}`{nearest(experiment, known)}")
    return {experiment: known[experiment]}


def find(store: Store, word: str, experiment: str | None = None, stages: Sequence[str] = ()) -> Artifact:
    """The artifact with the address `word` in a recorded experiment, or with a key that begins with `word`.

    An address is `train/relu`, or `relu` if only one stage has that name. A key needs four digits or more.
    `experiment` limits the search to one experiment, and `stages` to some stages. Raises UserError if there
    is no such artifact, if there are several, or if it is damaged.
    """
    named: dict[tuple[str, str], str] = {}
    known: set[str] = set()
    for name, record in records_of(store, experiment).items():
        for address, node in record.nodes.items():
            if stages and node.stage not in stages:
                continue
            known.add(address)
            if word in (address, address.partition("/")[2]):
                named.setdefault((node.stage, node.key), f"{name}: {address}")
    found = {place: store.at(*place) for place in named}
    if not found and len(word) >= _DIGITS:
        for stage in stages or (None,):
            for artifact, _ in store.artifacts(stage):
                if artifact.key.startswith(word):
                    found[artifact.stage, artifact.key] = artifact
    if len(found) > 1:
        several = ", ".join(f"{key[:16]} ({named.get((stage, key), stage)})" for stage, key in found)
        raise UserError(f"{word}: several artifacts are called that, {several}; give the key of one.")
    if not found:
        raise UserError(
            f"{word}: nothing in {store.root} has this address or key{nearest(word, known)} `patchsae status` lists "
            "what there is."
        )
    [artifact] = found.values()
    if not artifact.is_usable:
        what = "a run names it, but it is not in" if named else "is unfinished or damaged in"
        raise UserError(f"{word}: {what} {store.root}; run it again.")
    return artifact


def find_sae(store: Store, word: str, experiment: str | None = None) -> Artifact:
    """The artifact of the SAE that `word` names, as in `find`."""
    return find(store, word, experiment, SAE_STAGES)


def input_of(store: Store, artifact: Artifact, role: str, stage: str) -> Artifact:
    """The artifact of `stage` that filled `role` when `artifact` was made.

    Raises UserError if it is no longer in the store.
    """
    identity = artifact.manifest.inputs[role]
    # The newest of several that are equal: they differ in where images or weights were found.
    for other in reversed(store.committed(stage)):
        if other.identity == identity:
            return other
    raise UserError(
        f"{artifact.stage} {artifact.key[:16]}: the {stage} artifact it was made from is not in {store.root}; run it "
        "again."
    )
