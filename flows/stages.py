"""One flow per stage, each for its own deployment: it runs that stage of an experiment, and nothing else."""

from __future__ import annotations

from prefect import Flow, flow

from flows.experiment import run_nodes
from flows.request import check_can_run, open_work
from flows.resources import Resources, check_resources
from flows.stage_task import Reference


def stage_flow(stage: str) -> Flow[..., dict[str, Reference]]:
    """The flow that runs the nodes of one stage; what feeds them must be in the store."""

    @flow(name=stage, flow_run_name="{experiment}")
    def run(
        experiment: str = "demo",
        name: str | None = None,
        store: str | None = None,
        overrides: list[str] | None = None,
        rerun: bool = False,
        resources: Resources = Resources(),  # noqa: B008 (frozen)
    ) -> dict[str, Reference]:
        """Runs one stage of an experiment.

        experiment: a preset's name or a YAML file; name: only this one of the stage (`relu` of `train/relu`);
        store: PATCHSAE_STORE or ./store if empty; overrides: PATH=VALUE strings; rerun: build it again.
        """
        word = f"{stage}/{name}" if name else stage
        work = open_work(experiment, overrides or [], store, [word], [word] if rerun else [])
        check_can_run(work)
        check_resources(resources)
        return run_nodes(work, resources)

    return run


index = stage_flow("index")
weights = stage_flow("weights")
extract = stage_flow("extract")
classifier = stage_flow("classifier")
train = stage_flow("train")
import_ = stage_flow("import")
statistics = stage_flow("statistics")
masking = stage_flow("masking")
reconstruction = stage_flow("reconstruction")
frontier = stage_flow("frontier")
