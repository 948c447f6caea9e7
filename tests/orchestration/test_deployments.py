"""The flows as a cluster runs them: a server, a work pool, `deploy --all`, a worker, `deployment run`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storage.artifacts import Store

ROOT = Path(__file__).parents[2]
STAGES = {"index", "weights", "extract", "classifier", "train", "statistics", "masking"}
EXPERIMENT = """
name: orchestrated
datasets:
  shapes: {kind: shapes, seed: 5, splits: {train: 240, test: 60}}
backbones:
  clip: {kind: shapes_clip}
saes:
  relu: {kind: relu_l1, dataset: shapes, backbone: clip, n_latents: 128, batch_size: 512, n_steps: 30}
evaluations:
  statistics: {kind: statistics, sae: relu}
  masking: {kind: masking, statistics: statistics, ks: [5]}
"""


@dataclass(frozen=True)
class Server:
    """A Prefect server with a worker, on a port of this machine."""

    url: str
    environment: dict[str, str]

    def prefect(self, *arguments: str) -> str:
        """Runs the `prefect` command; returns what it printed."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, deployment: str, **parameters: Any) -> None:
        """Runs a deployment to its end."""
        printed = self.prefect("deployment", "run", deployment, "--params", json.dumps(parameters), "--watch")
        assert "Completed" in printed, printed

    def ask(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=30
        ) as response:
            return json.load(response)

    def last_task_states(self) -> dict[str, str]:
        """Address -> state of its newest task run; parts mapped over Dask are left out."""
        runs = self.ask("/task_runs/filter", sort="EXPECTED_START_TIME_DESC")
        return {run["name"]: run["state_name"] for run in reversed(runs) if "/" in run["name"]}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect home")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "NO_PROXY": "127.0.0.1",
        "PWD": str(ROOT),
    }
    found = Server(environment["PREFECT_API_URL"], environment)
    command = [sys.executable, "-m", "prefect"]
    with (home / "server.log").open("wb") as log:
        processes = [
            subprocess.Popen(
                [*command, "server", "start", "--host", "127.0.0.1", "--port", str(port)],
                env=environment, stdout=log, stderr=log, start_new_session=True,
            )
        ]  # fmt: skip
        try:
            _wait_until_healthy(found.url, processes[0], home / "server.log")
            found.prefect("work-pool", "create", "patchsae", "--type", "process")
            found.prefect("gcl", "create", "gpu", "--limit", "1")
            found.prefect("deploy", "--all")
            processes.append(
                subprocess.Popen(
                    [*command, "worker", "start", "--pool", "patchsae"],
                    cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True,
                )
            )  # fmt: skip
            yield found
        finally:
            for process in reversed(processes):
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            opener.open(f"{url}/health", timeout=5)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the server did not start: {log.read_text()}")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiments") / "orchestrated run.yaml"
    path.write_text(EXPERIMENT)
    return path


def started(store: Store) -> dict[str, float]:
    """Stage -> when its artifact was made."""
    return {a.stage: a.manifest.provenance["started"] for a in store.committed()}


def test_every_stage_and_the_whole_are_deployed(server: Server) -> None:
    deployments = server.ask("/deployments/filter")
    assert {deployment["name"] for deployment in deployments} == STAGES | {"experiment"}
    schedules = [schedule for deployment in deployments for schedule in deployment["schedules"]]
    assert schedules
    assert not any(schedule["active"] for schedule in schedules)


def test_a_worker_runs_all_then_nothing_then_one_stage(
    server: Server, experiment: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "the store")
    parameters = {"experiment": str(experiment), "store": str(store.root)}

    server.run("experiment/experiment", **parameters)
    first = started(store)
    assert first.keys() == STAGES
    assert set(server.last_task_states().values()) == {"Completed"}
    tables = {artifact["key"] for artifact in server.ask("/artifacts/filter") if artifact["type"] == "table"}
    assert "orchestrated-train-relu" in tables
    assert len(tables) == len(STAGES)

    server.run("experiment/experiment", **parameters)
    assert started(store) == first
    assert set(server.last_task_states().values()) == {"Cached"}

    server.run("train/train", **parameters, rerun=True)
    again = started(store)
    assert again.pop("train") > first.pop("train")
    assert again == first
    assert server.last_task_states()["train/relu"] == "Completed"

    store.discard(store.committed("masking")[0])
    server.run("masking/masking", **parameters)
    assert "masking" in started(store)
    assert server.last_task_states()["masking/masking"] == "Completed"
