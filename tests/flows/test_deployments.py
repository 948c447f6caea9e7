"""The deployments of prefect.yaml for real: server, work pool, worker, runs, and what the server then shows."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.flows import Flow, load_flow_from_entrypoint

from patchsae.flows.stage_task import slug
from patchsae.pipeline.experiment.kinds import STAGES
from patchsae.storage.store import Store
from tests.support.prefect_server import ADDRESSES, ROOT, Server, on_a_leash, task_states

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the workers print."""
    return tmp_path_factory.mktemp("workers") / "output"


@pytest.fixture(scope="module")
def worker(server: Server, output: Path) -> Iterator[Server]:
    """A server that has been set up by the commands of docs/cluster.md, with both workers."""
    commands = documented("docs/cluster.md")
    assert commands[0] == ["prefect", "server", "start"], "the fixture `server` starts it on another port"
    workers = []
    with output.open("w") as file:
        for command in commands[1:]:
            if "worker" in command:
                environment = server.environment | {"PREFECT_LOGGING_LEVEL": "INFO"}
                workers.append(on_a_leash([sys.executable, "-m", *command], environment, file.fileno()))
            elif "deployment" not in command:
                server.run(*command)
    assert len(workers) == 2
    yield server
    for process in workers:
        process.communicate()


def documented(path: str) -> list[list[str]]:
    """The commands `uv run prefect ...` in the shell blocks of a page, in their order."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / path).read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("uv run prefect ")]


def run_as_documented(server: Server, name: str, experiment: Path, store: Store) -> None:
    """Runs the deployment `name` by the documented command, with this experiment in place of the demo."""
    [command] = [one for one in documented("docs/cluster.md") if one[1:4] == ["deployment", "run", name]]
    assert "experiment=demo" in command
    with_ours = [f"experiment={experiment}" if word == "experiment=demo" else word for word in command]
    watch = [] if "--watch" in command else ["--watch"]
    server.run(*with_ours, "--param", f"store={store.root}", *watch)


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
    """The store of an experiment that was run by a deployment."""
    store = Store(tmp_path_factory.mktemp("deployed") / "store")
    run_as_documented(worker, "experiment/experiment", little, store)
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


def test_one_stage_is_run_again(worker: Server, first_run: Store, little: Path, in_server: Server) -> None:
    before = started(first_run)
    run_as_documented(worker, "train/train", little, first_run)
    [run] = runs_called("little: train/relu")
    assert task_states(of(run), 1) == {"train/relu": "Completed"}
    after = started(first_run)
    assert {stage for stage in after if after[stage] != before[stage]} == {"train"}


def runs_called(name: str) -> list[FlowRun]:
    with get_client(sync_client=True) as client:
        return [run for run in client.read_flow_runs() if run.name == name]


def test_the_log_of_a_run_has_its_progress(first_run: Store, in_server: Server) -> None:
    lines = logged("little")
    assert sum("train/relu: 30/30 steps, loss " in line and " tokens/s" in line for line in lines) == 1
    for address in ("statistics/statistics", "masking/masking"):
        # Counted in the task that maps them, and not one by one in the run of their flow.
        assert any(line.startswith(f"{address}: ") and line.endswith(" parts") for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_a_users_error_is_a_line_of_the_log_and_of_the_state(
    worker: Server, in_server: Server, output: Path, tmp_path: Path
) -> None:
    run = run_deployment(
        "train/train", parameters={"experiment": str(tmp_path / "none.yaml")}, timeout=400, poll_interval=0.5
    )
    assert isinstance(run, FlowRun) and run.state is not None and run.name == "none: train"
    assert run.state.is_failed() and "\n" not in str(run.state.message)
    errors = [line for line in logged("none: train") if "none.yaml" in line]
    assert len(errors) == 1 and errors[0].startswith(str(tmp_path)) and "\n" not in errors[0]
    assert errors[0] in output.read_text() and "Traceback" not in output.read_text()


def logged(name: str) -> list[str]:
    """The lines of the log of the runs called `name`. They reach the server in batches, every two seconds."""
    ids = [run.id for run in runs_called(name)]
    deadline = time.monotonic() + 60
    while True:
        with get_client(sync_client=True) as client:
            of_runs = LogFilter(flow_run_id=LogFilterFlowRunId(any_=ids))
            lines = [log.message for log in client.read_logs(log_filter=of_runs, limit=200)]
        if any(line.startswith("Finished in state") for line in lines[-1:]) or time.monotonic() > deadline:
            return lines
        time.sleep(0.5)
