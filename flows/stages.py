"""One flow per stage, which runs the nodes of that stage alone; prefect.yaml has a deployment for each.

The flow of a stage is an attribute of this module with the stage's name, such as
`patchsae.flows.stages.train`.
"""

from __future__ import annotations

from prefect import Flow, flow
from prefect.runtime import flow_run

from patchsae.flows.experiment import run_name, run_wanted
from patchsae.flows.resources import ResourcesModel
from patchsae.flows.result_storage import Reference
from patchsae.pipeline.experiment.kinds import STAGES


def stage_flow(stage: str) -> Flow[..., dict[str, Reference]]:
    """The flow that runs the nodes of one stage. Their inputs must be in the store."""

    @flow(name=stage, flow_run_name=lambda: run_name([_word(stage, flow_run.parameters.get("name"))]))
    def run(
        experiment: str = "demo",
        name: str | None = None,
        store: str | None = None,
        overrides: list[str] | None = None,
        rerun: bool = False,
        resources: ResourcesModel = ResourcesModel(),  # noqa: B008 (frozen)
    ) -> dict[str, Reference]:
        """Runs one stage of an experiment.

        experiment: the name of a preset or a YAML file. name: run only this node of the stage (`relu` for
        `train/relu`). store: a folder; if empty, PATCHSAE_STORE or ./store. overrides: PATH=VALUE strings.
        rerun: build artifacts even if they are in the store.
        """
        word = _word(stage, name)
        return run_wanted(experiment, overrides or [], store, [word], [word] if rerun else [], resources)

    return run


def _word(stage: str, name: str | None) -> str:
    return f"{stage}/{name}" if name else stage


FLOWS = {name: stage_flow(name) for name in STAGES}
globals().update(FLOWS)
