"""The flow `experiment`: every wanted node of an experiment, inputs before what they feed."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import flow

from flows.map_parts import DaskParts
from flows.request import Work, check_can_run, open_work
from flows.resources import Resources, check_resources
from flows.stage_task import Build, Reference, results_folder, run_stage
from pipeline.plan import Planned, companions, plan_node, run_together
from pipeline.progress import ConsoleReporter
from pipeline.stage import Runtime
from storage.artifacts import Artifact
from storage.errors import UserError


@flow(name="experiment", flow_run_name="{experiment}", validate_parameters=True)
def experiment(
    experiment: str = "demo",
    overrides: list[str] | None = None,
    store: str | None = None,
    only: list[str] | None = None,
    rerun: list[str] | None = None,
    resources: Resources = Resources(),  # noqa: B008 (frozen)
) -> dict[str, Reference]:
    """Runs what is missing of an experiment.

    experiment: a preset's name or a YAML file; overrides: PATH=VALUE strings; store: PATCHSAE_STORE or
    ./store if empty; only, rerun: stages or `stage/name` addresses. Returns address -> artifact.
    """
    work = open_work(experiment, overrides or [], store, only or [], rerun or [])
    check_can_run(work)
    check_resources(resources)
    return run_nodes(work, resources)


def run_nodes(work: Work, resources: Resources) -> dict[str, Reference]:
    """Runs the wanted nodes one after another as tasks of the current flow.

    Nodes are planned again one by one: the key of what follows an index or weights is known only once that
    is there. A node that is cached is called too, so that Prefect shows it as such.
    """
    with DaskParts(resources.dask) as map_parts:
        runtime = _runtime(resources, map_parts)
        committed = work.store.committed()
        planned: dict[str, Planned] = {}
        references: dict[str, Reference] = {}
        built: set[str | None] = set()
        for address, before in work.planned.items():
            if address not in work.wanted:
                planned[address] = plan_node(work.store, before.node, planned, committed)
                continue
            item = planned[address] = _ready(work, before, planned, committed, built)
            group = [item]
            if item.has_work and item.node.stage.together_key is not None:
                later = [
                    _ready(work, other, planned, committed, built)
                    for a, other in work.planned.items()
                    if a in work.wanted and a not in references and other.node.inputs == before.node.inputs
                ]
                group += companions(item, later)[: runtime.members - 1]
            references[address] = _run(work, group, planned, runtime)
            built |= {member.key for member in group}
            planned[address] = plan_node(work.store, before.node, planned, committed)
        return references


def _ready(
    work: Work,
    before: Planned,
    planned: dict[str, Planned],
    committed: Sequence[Artifact],
    built: set[str | None],
) -> Planned:
    """The node as it is planned now, its artifact deleted if it is to be built again and has not been."""
    item = plan_node(work.store, before.node, planned, committed)
    if before.node.address not in work.again or item.key in built:
        return item
    _discard(work, item)
    return plan_node(work.store, before.node, planned, committed)


def _runtime(resources: Resources, map_parts: DaskParts) -> Runtime:
    given = {
        name: value
        for name in ("device", "workers", "checkpoint_seconds", "processes", "torchrun", "members", "log")
        if (value := getattr(resources, name)) is not None
    }
    return Runtime.here(**given, reporter=ConsoleReporter(), map_parts=map_parts)


def _discard(work: Work, item: Planned) -> None:
    if item.key is None:
        return
    artifact = work.store.at(item.node.stage.name, item.key)
    with work.store.locked(artifact):
        if artifact.path.exists():
            work.store.discard(artifact)


def _remember(work: Work, planned: dict[str, Planned]) -> None:
    """Records what the run has reached, before it is built, so that `gc` takes nothing of what has begun.

    What is not known yet stays as it was at the last run of that name.
    """
    record = work.store.experiments().get(work.record, {})
    known = {
        a: (i.node.stage.name, i.key) for a, i in {**work.planned, **planned}.items() if i.key is not None
    }
    kept = {address: record[address] for address in work.planned.keys() & record.keys()}
    work.store.record_experiment(work.record, {**kept, **known})


def _run(work: Work, group: Sequence[Planned], planned: dict[str, Planned], runtime: Runtime) -> Reference:
    """Runs a node as a task, and builds the rest of its group with it. Raises UserError if what it needs is missing."""
    item = group[0]
    address = item.node.address
    if item.state == "blocked":
        raise UserError(f"{address}: {item.why}")
    assert item.key is not None, f"{address} {item.why}"
    _remember(work, planned)
    task = run_stage.with_options(
        task_run_name=address,
        refresh_cache=item.state != "cached",
        result_storage=results_folder(work.store),
    )
    return task(
        experiment=work.record,
        address=address,
        stage=item.node.stage.name,
        key=item.key,
        device=runtime.device,
        build=Build(lambda: run_together(work.store, group, planned, runtime)[0]),
    )
