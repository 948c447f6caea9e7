"""The flow `experiment`, which runs the wanted nodes of an experiment for `patchsae run` and deployments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run
from pydantic import BaseModel

from patchsae.flows.dead_runs import marked_alive
from patchsae.flows.map_parts import DaskParts
from patchsae.flows.resources import ResourcesModel, check_resources, resources_of
from patchsae.flows.result_storage import Reference, StoreView
from patchsae.flows.run_log import plain_log, reporter, stages_in_log
from patchsae.flows.stage_task import Build, run_stage
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import load
from patchsae.pipeline.experiment.request import Work, check_can_run, open_work
from patchsae.pipeline.experiment.run import Group, groups
from patchsae.storage.errors import UserError


def run_name(stages: Sequence[str] | None = None) -> str:
    """`photos` for a run of the experiment `photos`, or `photos: train/relu` for a run of some of its stages.

    It reads the parameters of the present flow run. The name of an experiment that cannot be read is taken
    from the file's.
    """
    parameters = flow_run.parameters
    experiment, overrides = parameters["experiment"], parameters.get("overrides") or []
    try:
        name = load(experiment, overrides).name
    except UserError:
        name = Path(experiment).stem
    words = stages or [*(parameters.get("only") or []), *(parameters.get("up_to") or [])]
    return f"{name}: {', '.join(words)}" if words else name


@flow(name="experiment", flow_run_name=run_name, validate_parameters=True)
def experiment(
    experiment: str = "demo",
    overrides: list[str] | None = None,
    store: str | None = None,
    only: list[str] | None = None,
    rerun: list[str] | None = None,
    resources: ResourcesModel = ResourcesModel(),  # noqa: B008 (frozen)
    up_to: list[str] | None = None,
) -> dict[str, Reference]:
    """Builds every artifact of an experiment that is not in the store.

    experiment: the name of a preset or a YAML file. overrides: PATH=VALUE strings. store: a folder; if empty,
    PATCHSAE_STORE or ./store. only, rerun: stages or `stage/name` addresses. up_to: the same, with what they need.
    Returns address -> artifact.
    """
    return run_wanted(experiment, overrides or [], store, only or [], rerun or [], resources, up_to or [])


def run_wanted(
    experiment: str,
    overrides: Sequence[str],
    store: str | None,
    only: Sequence[str],
    rerun: Sequence[str],
    resources: BaseModel,
    up_to: Sequence[str] = (),
) -> dict[str, Reference]:
    """Runs the wanted nodes one after another as tasks of the current flow: address -> artifact.

    The task of a cached node is called too, so that Prefect shows the node as `Cached`. Raises UserError for what
    cannot be run, before anything is.
    """
    plain_log()
    work = open_work(experiment, overrides, store, only, rerun, up_to)
    check_can_run(work)
    check_resources(chosen := resources_of(resources))
    built: set[str | None] = set()
    with stages_in_log(), marked_alive(work.store), DaskParts(chosen.dask) as map_parts:
        runtime = Runtime.here(chosen, reporter=reporter(), map_parts=map_parts)
        return {
            group.first.node.address: _run(work, group, runtime, built) for group in groups(work, runtime)
        }


def _run(work: Work, group: Group, runtime: Runtime, built: set[str | None]) -> Reference:
    """Runs the task of a group's first node, which builds all nodes of the group.

    `built` holds the keys that this run has built. A node that was built together with another one is not
    shown as `Cached`: its task runs, finds the artifact, and shows its summary.
    """
    item = group.first
    task = run_stage.with_options(
        task_run_name=item.node.address, refresh_cache=item.has_work or item.key in built
    )
    # As an option Prefect takes a storage of one's own only if its server knows it.
    task.result_storage = StoreView(root=str(work.store.root))
    built |= {other.key for other in group.items if other.has_work}
    return task(
        experiment=work.record,
        address=item.node.address,
        stage=item.node.stage.name,
        key=str(item.key),
        device=runtime.device,
        build=Build(lambda: group.build()[0]),
    )
