"""Runs the wanted nodes of an experiment without Prefect, group by group. Flows run each group as a task."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Container, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from patchsae.pipeline.core.execute import Assignment, execute
from patchsae.pipeline.core.graph import Node
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
    record = _Recorder(work)
    with work.store.records.running(record.record):
        yield from _groups(work, record, runtime)


def _groups(work: Work, record: _Recorder, runtime: Runtime) -> Iterator[Group]:
    planned: dict[str, Planned] = {}
    built: set[str | None] = set()
    companions = Companions(work)
    # Written before anything is looked up, so that `gc` deletes nothing that is about to be used.
    record.write({}, newest=True)
    for address, before in work.planned.items():
        item = planned[address] = _looked_at(work, before.node, planned, built)
        if address not in work.wanted:
            continue
        if not item.has_work and item.key not in built:
            _LOG.info("%s is in the store: %s", address, item.key)
        group = [item, *companions.of(item, planned, built, runtime.members - 1)]
        # With all its members, which are built now although their turn comes later.
        record.write({**planned, **{member.node.address: member for member in group}})
        yield Group(group, _building(work, group, dict(planned), runtime))
        built |= {member.key for member in group}
        planned[address] = work.planner.node(before.node, planned, explain=False)
    record.write(planned)


def _looked_at(
    work: Work, node: Node, planned: Mapping[str, Planned], built: Container[str | None]
) -> Planned:
    """The plan of a node now, marked if it is to be built again."""
    return _again(work, work.planner.node(node, planned, explain=False), built)


def run(work: Work, runtime: Runtime) -> dict[str, Artifact]:
    """Builds every wanted node and returns address -> artifact."""
    return {group.first.node.address: group.build()[0] for group in groups(work, runtime)}


def _again(work: Work, item: Planned, built: Container[str | None]) -> Planned:
    """`item`, marked with `again` if the user asked to build it again and this run has not done so yet."""
    if item.node.address not in work.again or item.key in built:
        return item
    return replace(item, again=True, why="asked to run again")


class Companions:
    """Finds nodes whose turn comes later and that can be built in the same pass as one, such as a sweep's SAEs.

    A node that was found to be built is not looked at again before its turn.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._alike: dict[Hashable, list[Node]] = {}
        for address, item in work.planned.items():
            if address in work.wanted and (alike := _pass_of(item.node)) is not None:
                self._alike.setdefault(alike, []).append(item.node)

    def of(
        self, item: Planned, planned: Mapping[str, Planned], built: Container[str | None], most: int
    ) -> list[Planned]:
        """At most `most` nodes that are to be built together with `item`."""
        alike = _pass_of(item.node)
        if alike is None or not item.has_work:
            return []
        found: dict[str, Planned] = {}
        left = []
        for node in self._alike[alike]:
            if node.address in planned:
                continue
            if len(found) == most:
                left.append(node)
                continue
            other = _looked_at(self._work, node, planned, built)
            if other.has_work and other.state != "blocked" and other.key not in (None, item.key, *found):
                found[str(other.key)] = other
        self._alike[alike] = left
        return list(found.values())


def _pass_of(node: Node) -> Hashable:
    """Nodes can be built in one pass if this is equal and not None."""
    if node.stage.together_key is None:
        return None
    return node.stage.name, tuple(sorted(node.inputs.items())), node.stage.together_key(node.config)


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
        # What is looked at again when its turn comes is not explained again.
        why = item.why or work.planned[item.node.address].why
        _LOG.info("%s starts (%s)", item.node.address, why)
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


def remember(work: Work) -> None:
    """Writes the record of the experiment, as the newest of its name: its configs, and the artifact of every node
    whose key is known."""
    _Recorder(work).write({}, newest=True)


class _Recorder:
    """Writes the record of an experiment, and writes it again when more keys are known.

    A node whose key is not known keeps what the last run of this experiment recorded.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._experiment = work.experiment.model_dump(mode="json")
        self._nodes: dict[str, RecordedNode] = {}
        old = work.store.records.of(work.record, ExperimentRecord({}, self._experiment))
        if old is not None:
            self._nodes = {a: old.nodes[a] for a in work.planned.keys() & old.nodes.keys()}
        self._add(work.planned)

    def _add(self, planned: Mapping[str, Planned]) -> bool:
        """Notes the nodes whose keys are known. Returns whether that changes the record."""
        before = dict(self._nodes)
        for address, item in planned.items():
            if item.key is not None:
                names = {name: value for name, value in vars(item.node.names).items() if value is not None}
                self._nodes[address] = RecordedNode(item.node.stage.name, item.key, names, item.node.inputs)
        return self._nodes != before

    @property
    def record(self) -> ExperimentRecord:
        return ExperimentRecord(self._nodes, self._experiment)

    def write(self, planned: Mapping[str, Planned], newest: bool = False) -> None:
        """Writes the record if `planned` adds to it. With `newest` it is written in any case, and becomes the one
        of its name."""
        if self._add(planned) or newest:
            self._work.store.records.write(
                self._work.record,
                self.record,
                newest,
                lambda: _LOG.warning("`patchsae gc` is deleting; waiting for it."),
            )
