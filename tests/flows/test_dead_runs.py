"""A run that was killed is shown as crashed after the next run on its store began, and a live one never is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Running, Scheduled

from patchsae.flows.experiment import experiment
from patchsae.storage.run_marks import this_machine
from patchsae.storage.store import Store
from tests.support.prefect_server import ROOT, Server


def next_run(store: Store, little: Path) -> None:
    """A run that finds everything cached."""
    experiment(experiment=str(little), store=str(store.root), only=["index"], resources={"workers": 0})


def marks(store: Store) -> dict[int, str]:
    """Process id -> flow run, of all runs that have left a mark or live."""
    found = {}
    for path in (store.root / "locks").glob("*.run"):
        if path.stat().st_size:
            found[json.loads(path.read_text())["pid"]] = path.stem
    return found


def tasks(client: SyncPrefectClient, run: str) -> dict[str, str]:
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
    return {t.name: t.state.name for t in client.read_task_runs(flow_run_filter=of_run) if t.state}


def state(client: SyncPrefectClient, run: str) -> tuple[str, str | None]:
    found = client.read_flow_run(run).state
    assert found is not None
    return found.name, found.message


@pytest.mark.slow
def test_a_killed_run_is_crashed_and_one_that_lives_beside_it_goes_on(
    in_server: Server, store: Store, little: Path
) -> None:
    train = store.committed("train")[0]
    shutil.rmtree(train.path)
    command = [sys.executable, "-m", "patchsae.flows.cli.app", "run", str(little), "--store", str(store.root)]
    with store.building(train), get_client(sync_client=True) as client:
        # Both wait for the artifact.
        killed, alive = (
            subprocess.Popen(
                command, env=in_server.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            for _ in range(2)
        )
        deadline = time.monotonic() + 200
        while not all(
            p.pid in (found := marks(store)) and tasks(client, found[p.pid]).get("train/relu") == "Running"
            for p in (killed, alive)
        ):
            assert killed.poll() is None and alive.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        dead, living = found[killed.pid], found[alive.pid]
        next_run(store, little)
        assert state(client, dead)[0] == "Running", "it lived"
        killed.kill()
        killed.communicate()
        next_run(store, little)
        name, message = state(client, dead)
        assert name == "Crashed" and f"process {killed.pid} on " in str(message)
        assert tasks(client, dead)["train/relu"] == "Crashed"
        assert tasks(client, dead)["index/shapes"] == "Cached"
        assert state(client, living)[0] == "Running" and tasks(client, living)["train/relu"] == "Running"
    alive.terminate()
    alive.communicate()
    assert marks(store) == {}


@flow
def some_flow() -> None:
    """A flow whose runs are made by hand."""


def abandoned(client: SyncPrefectClient, store: Store, **content: object) -> FlowRun:
    """A run that the server takes for running, with the mark that its dead process left."""
    run = client.create_flow_run(some_flow)
    client.set_flow_run_state(run.id, Running(), force=True)
    text = json.dumps({"machine": this_machine(), "pid": 1, "host": "here", **content})
    (store.root / "locks" / f"{run.id}.run").write_text(text)
    return client.read_flow_run(run.id)


def test_the_gpus_place_of_a_dead_run_is_free_again(in_server: Server, store: Store, little: Path) -> None:
    with get_client(sync_client=True) as client:
        client.request("POST", "/v2/concurrency_limits/", json={"name": "other", "limit": 1})
        answer = client.increment_concurrency_slots_with_lease(["other"], 1, "concurrency", 300)
        run = abandoned(client, store, leases=[answer.json()["lease_id"]])
        assert client.read_global_concurrency_limit_by_name("other").active_slots == 1
        next_run(store, little)
        assert client.read_global_concurrency_limit_by_name("other").active_slots == 0
        assert state(client, str(run.id))[0] == "Crashed"
    assert marks(store) == {}


def test_a_run_that_was_started_again_is_left_alone(in_server: Server, store: Store, little: Path) -> None:
    with get_client(sync_client=True) as client:
        again = abandoned(client, store, run_count=0)
        waits = abandoned(client, store)
        client.set_flow_run_state(waits.id, Scheduled(), force=True)
        unknown = store.root / "locks" / "00000000-0000-0000-0000-000000000000.run"
        unknown.write_text("{}")
        next_run(store, little)
        assert again.run_count == 1 and state(client, str(again.id))[0] == "Running"
        assert state(client, str(waits.id))[0] == "Scheduled"
    assert [path.name for path in (store.root / "locks").glob("*.run")] == [unknown.name]
