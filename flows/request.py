"""What a user asked for: an experiment, planned against a store, and which of its nodes are wanted.

Free of Prefect, so that a plan, or a run with nothing to do, starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline import dag, plan
from pipeline.config import nearest
from pipeline.experiment import Experiment, load
from pipeline.plan import Planned
from storage.artifacts import Store
from storage.errors import UserError
from storage.keys import digest_json

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Work:
    """An experiment and what a store holds of it.

    `record` is the name under which the store remembers the run; `wanted` and `again` are addresses: what
    may be run, and what is to be built again although it is there.
    """

    experiment: Experiment
    record: str
    store: Store
    planned: dict[str, Planned]
    wanted: frozenset[str]
    again: frozenset[str]

    def to_do(self) -> list[str]:
        """The wanted addresses that a run would work on, in order."""
        return [a for a in self.planned if a in self.wanted and (a in self.again or self.planned[a].has_work)]


def store_uri(given: str | None) -> str:
    """The store that was named, or that of the environment, or `./store`."""
    return given or os.environ.get("PATCHSAE_STORE") or "./store"


def open_work(
    experiment: str,
    overrides: Sequence[str] = (),
    store: str | None = None,
    only: Sequence[str] = (),
    rerun: Sequence[str] = (),
) -> Work:
    """Reads and plans an experiment. `only` and `rerun` hold stages or addresses (`train`, `train/relu`).

    Raises UserError if the experiment, an override, a stage or the store is not usable.
    """
    opened = Store(store_uri(store))
    config = load(experiment, PRESETS, overrides)
    planned = plan.plan(opened, dag.build(config))
    return Work(
        config,
        f"{config.name}-{digest_json(list(overrides))[:8]}" if overrides else config.name,
        opened,
        planned,
        frozenset(_select(planned, only, "--only") if only else planned),
        frozenset(_select(planned, rerun, "--rerun")),
    )


def _select(planned: dict[str, Planned], words: Sequence[str], option: str) -> set[str]:
    selected = set()
    for word in words:
        found = {a for a, item in planned.items() if word in (a, item.node.stage.name)}
        if not found:
            known = {item.node.stage.name for item in planned.values()}
            raise UserError(
                f"{option} {word}: the experiment has no such stage{nearest(word, planned if '/' in word else known)}"
            )
        selected |= found
    return selected


def check_can_run(work: Work) -> None:
    """Raises UserError, before anything is started, if a wanted node cannot run or the disk is too small."""
    for address in work.to_do():
        item = work.planned[address]
        if item.state == "blocked":
            raise UserError(f"{address}: {_root_cause(work, item).why}")
        for needed in item.node.inputs.values():
            if needed not in work.wanted and work.planned[needed].state != "cached":
                raise UserError(
                    f"{address} needs {needed}, which is not in the store and not among the stages to run; run that "
                    "first."
                )
    plan.check_space(work.store, {address: work.planned[address] for address in work.wanted})
    work.store.check_writable()


def _root_cause(work: Work, item: Planned) -> Planned:
    blocked = [work.planned[a] for a in item.node.inputs.values() if work.planned[a].state == "blocked"]
    return _root_cause(work, blocked[0]) if blocked else item


DisplayState = Literal["cached", "to run", "resumes", "blocked"]


def display_state(item: Planned) -> DisplayState:
    """The state of a planned node in a reader's words; a damaged artifact is one that will run."""
    match item.state:
        case "cached":
            return "cached"
        case "resume":
            return "resumes"
        case "blocked":
            return "blocked"
        case _:
            return "to run"
