"""The deployments of prefect.yaml for real: server, work pool, worker, runs, and what the server then shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.flows import Flow, load_flow_from_entrypoint

from patchsae.flows.stage_task import slug
from patchsae.pipeline.experiment.kinds import STAGES
from patchsae.storage.store import Store
from tests.support.prefect_server import ADDRESSES, ROOT, Server, task_states

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worker(server: Server) -> Iterator[Server]:
    """A server that has the work pool, the GPU limit, every deployment, and a worker."""
    server.run("prefect", "work-pool", "create", "patchsae", "--type", "process")
    server.run("prefect", "--no-prompt", "deploy", "--all")
    process = server.start("prefect", "worker", "start", "--pool", "patchsae", "--limit", "1")
    yield server
    process.communicate()


def of(run: FlowRun) -> FlowRunFilter:
    return FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))


def deploy_and_wait(name: str, parameters: dict[str, Any]) -> FlowRun:
    run = run_deployment(name, parameters=parameters, timeout=400, poll_interval=0.5)
    assert isinstance(run, FlowRun) and run.state is not None
    assert run.state.is_completed(), run.state
    return run


def test_prefect_yaml_has_a_deployment_per_stage() -> None:
    declared = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert [d["name"] for d in declared] == ["experiment", *STAGES]
    # What it says of a stage is what the stage says of itself.
    assert {d["name"]: d["description"] for d in declared[1:]} == {
        name: stage.description for name, stage in STAGES.items()
    }
    for one in declared:
        assert isinstance(load_flow_from_entrypoint(one["entrypoint"]), Flow)
    assert [s["active"] for s in declared[0]["schedules"]] == [False]


@pytest.fixture(scope="module")
def first_run(worker: Server, little: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of an experiment that was run by a deployment, by hand as the README has it."""
    store = Store(tmp_path_factory.mktemp("deployed") / "store")
    worker.run(
        *("prefect", "deployment", "run", "experiment/experiment", "--watch"),
        *("--param", f"experiment={little}", "--param", f"store={store.root}"),
    )
    return store


@pytest.fixture
def parameters(first_run: Store, little: Path) -> dict[str, Any]:
    return {"experiment": str(little), "store": str(first_run.root), "resources": {"workers": 1}}


def started(store: Store) -> dict[str, float]:
    return {artifact.stage: artifact.manifest.provenance["started"] for artifact in store.committed()}


def test_everything_is_deployed_and_no_schedule_is_active(worker: Server, in_server: Server) -> None:
    with get_client(sync_client=True) as client:
        deployments = {deployment.name: deployment for deployment in client.read_deployments()}
    assert deployments.keys() == {"experiment", *STAGES}
    assert [schedule.active for schedule in deployments["experiment"].schedules] == [False]
    assert {deployment.work_pool_name for deployment in deployments.values()} == {"patchsae"}


def test_a_deployed_run_makes_every_artifact(first_run: Store) -> None:
    assert sorted(artifact.stage for artifact in first_run.committed()) == sorted(
        address.split("/")[0] for address in ADDRESSES
    )
    assert list(first_run.records.all()) == ["little"]


def test_parts_are_mapped_by_dask(first_run: Store, in_server: Server) -> None:
    with get_client(sync_client=True) as client:
        for stage in ("statistics", "masking"):
            address, key = f"{stage}/{stage}", first_run.committed(stage)[0].key
            (run,) = (r for r in client.read_flow_runs() if r.parameters.get("key") == key)
            parts = run.parameters["parts"]
            assert len(parts) > 1 and run.name == f"{address} parts 0-{len(parts) - 1}"
            assert task_states(of(run), len(parts)) == {
                f"{address} part {part}": "Completed" for part in parts
            }


def test_summaries_are_table_artifacts(first_run: Store, in_server: Server) -> None:
    with get_client(sync_client=True) as client:
        response = client.request("POST", "/artifacts/latest/filter", json={})
    found = {artifact["key"]: artifact for artifact in response.json()}
    assert set(found) >= {slug(f"little-{address}") for address in ADDRESSES}
    table = found["little-train-relu"]
    assert table["type"] == "table"
    assert "loss" in table["data"] and "train/relu" in table["description"]


def test_a_second_run_is_cached(first_run: Store, parameters: dict[str, Any], in_server: Server) -> None:
    before = started(first_run)
    run = deploy_and_wait("experiment/experiment", parameters)
    assert task_states(of(run), len(ADDRESSES)) == dict.fromkeys(ADDRESSES, "Cached")
    assert started(first_run) == before


def test_one_stage_is_run_again(first_run: Store, parameters: dict[str, Any], in_server: Server) -> None:
    before = started(first_run)
    run = deploy_and_wait("train/train", {**parameters, "name": "relu", "rerun": True})
    assert task_states(of(run), 1) == {"train/relu": "Completed"}
    after = started(first_run)
    assert {stage for stage in after if after[stage] != before[stage]} == {"train"}
