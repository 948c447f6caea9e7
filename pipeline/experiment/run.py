"""Runs the wanted nodes of an experiment without Prefect, group by group. Flows run each group as a task."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from patchsae.pipeline.core.execute import Assignment, execute
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.core.text import number
from patchsae.pipeline.experiment.plan import Planned
from patchsae.pipeline.experiment.request import Work
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.locks import Busy, refuse
from patchsae.storage.records import ExperimentRecord, RecordedNode
from patchsae.storage.store import Store

_LOG = logging.getLogger("patchsae")


@dataclass(frozen=True)
class Group:
    """Nodes that are built in one pass, most often one. `build` returns their artifacts, in their order."""

    items: Sequence[Planned]
    build: Callable[[], list[Artifact]]

    @property
    def first(self) -> Planned:
        return self.items[0]


def groups(work: Work, runtime: Runtime) -> Iterator[Group]:
    """One group for every wanted node of `work`, in their order; the node is the first of its group.

    The caller must build a group before it asks for the next one. Each node is planned anew when its turn
    comes, since the keys of nodes that use an index or weights are known only when these are built. The
    experiment's record is written before a group is built, and cannot be forgotten until the run ends, so that
    `patchsae gc` deletes nothing that the run has reached. Raises UserError for a node that cannot be built.
    """
    with work.store.records.running(_record(work, work.planned)):
        yield from _groups(work, runtime)


def _groups(work: Work, runtime: Runtime) -> Iterator[Group]:
    planned: dict[str, Planned] = {}
    built: set[str | None] = set()
    # Written before anything is looked up, so that `gc` deletes nothing that is about to be used.
    remember(work, newest=True)
    for address, before in work.planned.items():
        item = planned[address] = _again(work, work.planner.node(before.node, planned), built)
        if address not in work.wanted:
            continue
        if not item.has_work and item.key not in built:
            _LOG.info("%s is in the store: %s", address, item.key)
        later = [
            _again(work, work.planner.node(other.node, planned), built)
            for a, other in work.planned.items()
            if item.node.stage.together_key is not None and item.has_work
            if a in work.wanted and a not in planned and other.node.inputs == before.node.inputs
        ]
        group = [item, *companions(item, later)[: runtime.members - 1]]
        # With all its members, which are built now although their turn comes later.
        remember(work, {**planned, **{member.node.address: member for member in group}})
        yield Group(group, _building(work, group, dict(planned), runtime))
        built |= {member.key for member in group}
        planned[address] = work.planner.node(before.node, planned)
    remember(work, planned)


def run(work: Work, runtime: Runtime) -> dict[str, Artifact]:
    """Builds every wanted node and returns address -> artifact."""
    return {group.first.node.address: group.build()[0] for group in groups(work, runtime)}


def _again(work: Work, item: Planned, built: set[str | None]) -> Planned:
    """`item`, marked with `again` if the user asked to build it again and this run has not done so yet."""
    if item.node.address not in work.again or item.key in built:
        return item
    return replace(item, again=True, why="asked to run again")


def companions(item: Planned, others: Sequence[Planned]) -> list[Planned]:
    """Those of `others` that can be built in the same pass as `item`, such as other SAEs of a sweep."""
    stage = item.node.stage
    if stage.together_key is None or not item.has_work:
        return []
    found: dict[str, Planned] = {}
    for other in others:
        if (
            other.node.stage is stage
            and other.has_work
            and other.key not in (None, item.key)
            and other.node.inputs == item.node.inputs
            and stage.together_key(other.node.config) == stage.together_key(item.node.config)
        ):
            found.setdefault(str(other.key), other)
    return list(found.values())


def _building(
    work: Work, items: Sequence[Planned], before: Mapping[str, Planned], runtime: Runtime
) -> Callable[[], list[Artifact]]:
    """A function that builds the nodes `items` together. `before` holds the plans of their inputs."""

    rebuilt: set[str] = set()

    def build() -> list[Artifact]:
        with _told(work, items):
            works = [replace(assignment(work.store, item, before), experiment=work.record) for item in items]
            return execute(work.store, works, runtime, rebuilt)

    return build


@contextlib.contextmanager
def _told(work: Work, items: Sequence[Planned]) -> Iterator[None]:
    """Tells the logger when nodes that have work begin to be built, and how that ends."""
    busy = [item for item in items if item.has_work]
    for item in busy:
        _LOG.info("%s starts (%s)", item.node.address, item.why)
    called, started = ", ".join(item.node.address for item in busy), time.monotonic()
    try:
        yield
    except BaseException as error:
        how = "failed" if isinstance(error, Exception) else "was interrupted"
        if busy:
            _LOG.info("%s %s after %.1f s", called, how, time.monotonic() - started)
        raise
    for item in busy:
        artifact = work.store.at(item.node.stage.name, str(item.key))
        summary = ", ".join(f"{name} {number(value)}" for name, value in artifact.manifest.summary.items())
        seconds = time.monotonic() - started
        _LOG.info("%s is done after %.1f s: %s; %s", item.node.address, seconds, artifact.path, summary)


def assignment(store: Store, item: Planned, before: Mapping[str, Planned]) -> Assignment:
    """The assignment that builds a planned node. `before` holds the plans of its inputs.

    Raises UserError if the node is blocked or an input has not been built.
    """
    if item.state == "blocked":
        raise UserError(f"{item.node.address}: {item.why}")
    inputs = {}
    for role, address in item.node.inputs.items():
        upstream = before[address]
        if upstream.key is None or not store.is_usable(upstream.node.stage.name, upstream.key):
            raise UserError(f"{item.node.address} needs {address}, which has not been run; run that first.")
        inputs[role] = store.at(upstream.node.stage.name, upstream.key)
    assert item.key is not None, f"{item.node.address} {item.why}"
    return Assignment(
        item.node.stage,
        item.node.address,
        item.node.config,
        inputs,
        item.key_inputs,
        item.key,
        item.source.location if item.source is not None else {},
        item.again,
    )


def tidy(work: Work) -> None:
    """Deletes what killed processes left of the wanted artifacts, which are all finished."""
    for address in work.wanted:
        item = work.planned[address]
        if item.key is not None:
            artifact = work.store.at(item.node.stage.name, item.key)
            if work.store.leftovers(artifact):
                with contextlib.suppress(Busy), work.store.building(artifact, refuse):
                    work.store.settle(artifact, refuse)
                    work.store.tidy(artifact)


def remember(work: Work, planned: Mapping[str, Planned] | None = None, newest: bool = False) -> None:
    """Writes the record of the experiment: its configs, and the artifact of every node whose key is known.

    `planned` holds newer plans than `work.planned`. A node whose key is not known keeps what the last run
    of this experiment recorded. With `newest`, the record becomes the one of its name.
    """
    record = _record(work, {**work.planned, **(planned or {})})
    work.store.records.write(
        work.record, record, newest, lambda: _LOG.warning("`patchsae gc` is deleting; waiting for it.")
    )


def _record(work: Work, planned: Mapping[str, Planned]) -> ExperimentRecord:
    experiment = work.experiment.model_dump(mode="json")
    nodes: dict[str, RecordedNode] = {}
    old = work.store.records.of(work.record, ExperimentRecord({}, experiment))
    if old is not None:
        nodes = {address: old.nodes[address] for address in planned.keys() & old.nodes.keys()}
    for address, item in planned.items():
        if item.key is not None:
            names = {name: value for name, value in vars(item.node.names).items() if value is not None}
            nodes[address] = RecordedNode(item.node.stage.name, item.key, names, item.node.inputs)
    return ExperimentRecord(nodes, experiment)
