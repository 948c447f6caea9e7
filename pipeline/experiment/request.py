"""`Work`: an experiment, its plan, and the nodes a user asked for, with which commands and flows begin.

It needs no Prefect, so a plan, and a run with nothing to do, start no server.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.experiment.experiment import Experiment, load
from patchsae.pipeline.experiment.forecast import check_space
from patchsae.pipeline.experiment.plan import Planned, Planner
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_json
from patchsae.storage.store import Store


@dataclass(frozen=True)
class Work:
    """An experiment, its plan, and what a user asked for.

    `record` is the name under which the store records the experiment. `wanted` are the addresses that may be
    run. `again` are the addresses that are to be built even if they are committed.
    """

    experiment: Experiment
    record: str
    planner: Planner
    planned: dict[str, Planned]
    wanted: frozenset[str]
    again: frozenset[str]

    @property
    def store(self) -> Store:
        return self.planner.store

    def to_do(self) -> list[str]:
        """The wanted addresses that a run would build, or may build, in the order of the plan."""
        return [a for a in self.planned if a in self.wanted and (a in self.again or self.planned[a].has_work)]

    def to_write(self) -> dict[str, Planned]:
        """The plans of the wanted nodes, in which those that are built again need space."""
        return {
            address: _again(self.store, item) if address in self.again else item
            for address, item in self.planned.items()
            if address in self.wanted
        }


def _again(store: Store, item: Planned) -> Planned:
    """`item` as one that is built again, unless it is blocked: of what an interrupted rebuild left, nothing is
    written twice."""
    if item.state == "blocked":
        return item
    again = replace(item, again=True, why="asked to run again")
    if item.key is None:
        return again
    artifact = store.at(item.node.stage.name, item.key)
    rebuild = store.rebuild_of(artifact)
    if artifact.is_committed and rebuild.path.exists():
        again = replace(again, why=f"{again.why}; goes on where it was interrupted")
    if item.state != "cached":
        return again
    return replace(again, n_bytes_there=rebuild.n_bytes(), n_bytes_replaced=artifact.n_bytes())


def store_uri(given: str | None) -> str:
    """The store that was given, else that of the variable `PATCHSAE_STORE`, else `./store`."""
    return given or os.environ.get("PATCHSAE_STORE") or "./store"


def open_work(
    experiment: str,
    overrides: Sequence[str] = (),
    store: str | None = None,
    only: Sequence[str] = (),
    rerun: Sequence[str] = (),
    up_to: Sequence[str] = (),
) -> Work:
    """Reads an experiment and plans it. `only`, `rerun` and `up_to` hold stages or addresses (`train`, `train/relu`).

    Wanted are the stages of `only`, and those of `up_to` with all that they need; all if neither is given. Raises UserError if the experiment, an override, a stage or the store is not valid.
    """
    config = load(experiment, overrides)
    record = f"{config.name}-{digest_json(list(overrides))[:8]}" if overrides else config.name
    return work_on(Store(store_uri(store)), config, only, rerun, record, up_to)


def work_on(
    store: Store,
    experiment: Experiment,
    only: Sequence[str] = (),
    rerun: Sequence[str] = (),
    record: str | None = None,
    up_to: Sequence[str] = (),
) -> Work:
    """Plans an experiment against a store. The arguments are those of `open_work` and fields of `Work`."""
    planner = Planner(store, experiment.name)
    planned = planner.plan(experiment.nodes())
    return Work(
        experiment,
        record or experiment.name,
        planner,
        planned,
        frozenset(_wanted(planned, only, up_to)),
        frozenset(_select(planned, rerun, "--rerun")),
    )


def _wanted(planned: dict[str, Planned], only: Sequence[str], up_to: Sequence[str]) -> set[str]:
    if not only and not up_to:
        return set(planned)
    wanted = _select(planned, up_to, "--up-to")
    # Every node comes after its inputs.
    for address in reversed(planned):
        if address in wanted:
            wanted |= set(planned[address].node.inputs.values())
    return wanted | _select(planned, only, "--only")


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
    """Raises UserError if a wanted node cannot run or the disk is too small. Call it before a run starts."""
    check_not_blocked(work)
    check_inputs(work)
    check_space(work.store, work.to_write())
    work.store.check_writable()


def check_inputs(work: Work) -> None:
    """Raises UserError if a wanted node needs one that is neither in the store nor wanted itself."""
    for address in work.to_do():
        for needed in work.planned[address].node.inputs.values():
            if needed not in work.wanted and work.planned[needed].state != "cached":
                raise UserError(
                    f"{address} needs {needed}, which is not in the store and not among the stages to run; run that "
                    "first."
                )


def check_not_blocked(work: Work) -> None:
    """Raises UserError, with every cause, if a wanted node is blocked."""
    if faults := causes(work, work.to_do()):
        raise UserError("\n".join(f"{address}: {why}" for address, (why, _) in faults.items()))


def causes(work: Work, addresses: Iterable[str]) -> dict[str, tuple[str, list[str]]]:
    """What blocks some nodes: address of a node that cannot run -> why, and which of them it blocks beside itself."""
    found: dict[str, tuple[str, list[str]]] = {}
    for address in addresses:
        item = work.planned[address]
        if item.state == "blocked":
            cause = str(item.cause)
            _, others = found.setdefault(cause, (work.planned[cause].why, []))
            if address != cause:
                others.append(address)
    return found


DisplayState = Literal["cached", "to run", "resumes", "perhaps", "blocked"]


def display_state(item: Planned) -> DisplayState:
    """The state of a planned node as users see it. A damaged artifact is shown as one that will run."""
    if item.again:
        return "to run"
    match item.state:
        case "cached" | "perhaps" | "blocked":
            return item.state
        case "resume":
            return "resumes"
        case _:
            return "to run"
