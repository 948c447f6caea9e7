"""Planning and building single nodes, as `experiment.run` does for whole experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from patchsae.pipeline.core.execute import execute
from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.plan import Planned, Planner
from patchsae.pipeline.experiment.run import assignment
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store


def plan(store: Store, nodes: Sequence[Node]) -> dict[str, Planned]:
    return Planner(store).plan(nodes)


def run_node(store: Store, item: Planned, before: Mapping[str, Planned], runtime: Runtime) -> Artifact:
    """Builds one planned node, whose inputs are there."""
    return execute(store, [assignment(store, item, before)], runtime)[0]


def run_all(store: Store, nodes: Sequence[Node], runtime: Runtime | None = None) -> dict[str, Artifact]:
    """Builds nodes one by one, in their order."""
    done = {}
    for node in nodes:
        planned = plan(store, nodes)
        done[node.address] = run_node(store, planned[node.address], planned, runtime or Runtime())
    return done
