"""`OneExperiment`: the library of a report, in which one experiment is all there is."""

from __future__ import annotations

from dataclasses import replace

from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.snapshot import Snapshot
from patchsae.pipeline.core.text import nearest
from patchsae.storage.manifest import KEY_DIGITS
from patchsae.storage.store import Store


class OneExperiment(Library):
    """What one experiment of a store holds, as it was when this was opened.

    Artifacts and names of other experiments are not in it, and what a run adds meanwhile is not seen, so that the
    parts of a report agree with each other. Raises Absent if there is no store, or if it has no record of the
    experiment.
    """

    def __init__(self, store: Store, experiment: str) -> None:
        if not store.root.is_dir():
            raise Absent(f"{store.root}: no store here; give its folder, or run an experiment first.")
        super().__init__(store, mode="report")
        self.experiment = experiment
        self._one = _only(super().snapshot(), experiment)

    def snapshot(self) -> Snapshot:
        return self._one


def _only(whole: Snapshot, experiment: str) -> Snapshot:
    record = whole.records.get(experiment)
    if record is None:
        raise Absent(
            f"experiment {experiment}: this store has no record of it{nearest(experiment, whole.records)}"
        )
    own = {(node.stage, node.key[:KEY_DIGITS]) for node in record.nodes.values()}
    return replace(
        whole,
        held={name: held for name, held in whole.held.items() if name in own},
        records={experiment: record},
        unreadable=(),
    )
