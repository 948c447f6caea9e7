"""The flows and the command line: what Prefect is told, Dask against one process, interruptions, two at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest
from distributed import LocalCluster
from prefect import tags
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

from patchsae.flows.experiment import experiment
from patchsae.flows.map_parts import DaskParts
from patchsae.flows.stage_task import Build, run_stage, slug
from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.stage import PartStage, Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store
from tests.support.prefect_server import ADDRESSES, ROOT, Server, quiet_environment, task_states


def outputs(store: Store) -> dict[str, list[tuple[str, str]]]:
    return {a.stage: [(o.path, o.sha256) for o in a.manifest.outputs] for a in store.committed()}


def start_patchsae(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "patchsae.flows.cli.app", *arguments],
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def read_until(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(beginning):
            return
    pytest.fail(f"no line begins with {beginning!r}: {''.join(seen)}")


@pytest.mark.slow
@pytest.mark.usefixtures("hangups")
def test_without_a_server_interrupted_and_completed_on_dask(
    serial: Store, little: Path, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    environment = quiet_environment(tmp_path / "prefect") | {"TMPDIR": str(tmp_path / "tmp")}
    store = Store(tmp_path / "store")
    run = ["run", str(little), "--store", str(store.root), "--checkpoint-seconds", "0.1"]

    def interrupt(at: str, number: signal.Signals, signalled: Callable[[psutil.Process], None]) -> None:
        process = start_patchsae(environment, *run)
        read_until(process, at)
        helpers = psutil.Process(process.pid).children(recursive=True)
        signalled(psutil.Process(process.pid))
        rest, _ = process.communicate(timeout=120)
        assert process.returncode == 128 + number, rest
        assert "Traceback" not in rest and rest.count("patchsae: interrupted;") == 1, rest
        assert psutil.wait_procs(helpers, timeout=60)[1] == []
        assert list((tmp_path / "tmp").glob("patchsae-*")) == []

    # `kill` from another terminal; Prefect has a handler of its own while a flow runs.
    interrupt("train/relu:", signal.SIGTERM, lambda process: process.terminate())
    assert "train" not in outputs(store)
    assert "train/relu" in store.records.all()["little"].nodes, "gc would take what the run had begun"
    # While Dask's workers compute: a terminal that closes, and a scheduler that ends every process of a job.
    interrupt("statistics/statistics:", signal.SIGHUP, lambda process: os.killpg(process.pid, signal.SIGHUP))
    interrupt("masking/masking:", signal.SIGTERM, signal_everyone)

    completed = start_patchsae(environment, *run)
    rest, _ = completed.communicate(timeout=300)
    assert completed.returncode == 0, rest
    assert outputs(store) == outputs(serial)
    assert list((tmp_path / "tmp").glob("patchsae-*")) == []


def signal_everyone(process: psutil.Process) -> None:
    for one in (*process.children(recursive=True), process):
        one.terminate()


@pytest.mark.slow
def test_the_temporary_server_ends_with_a_killed_run(tmp_path: Path) -> None:
    code = (
        "import time; from patchsae.flows.server import server_for_a_run\n"
        "with server_for_a_run():\n    print('up', flush=True); time.sleep(100)"
    )
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=quiet_environment(tmp_path) | {"TMPDIR": str(tmp_path / "tmp")},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    read_until(process, "up")
    servers = psutil.Process(process.pid).children(recursive=True)
    assert servers and list((tmp_path / "tmp").glob("patchsae-*"))
    [address] = {found.laddr for found in servers[0].net_connections(kind="inet") if found.status == "LISTEN"}
    assert address.ip == "127.0.0.1"
    assert httpx.post(f"http://127.0.0.1:{address.port}/api/flow_runs/filter", json={}).status_code == 401
    process.kill()
    process.wait()
    assert psutil.wait_procs(servers, timeout=60)[1] == []
    assert list((tmp_path / "tmp").glob("patchsae-*")) == []


def test_a_second_run_waits_and_takes_the_result(
    server: Server, serial: Store, store: Store, little: Path
) -> None:
    train = store.committed("train")[0]
    shutil.rmtree(train.path)
    with store.building(train):
        process = start_patchsae(server.environment, "run", str(little), "--store", str(store.root))
        read_until(process, f"train/relu {train.key[:16]}: another process is building it")
        shutil.copytree(serial.at("train", train.key).path, train.path)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert "train/relu:" not in rest
    assert outputs(store) == outputs(serial)


def test_cached_exactly_when_the_manifest_is_there(in_server: Server, store: Store, little: Path) -> None:
    def run() -> dict[str, str]:
        with tags(name := uuid4().hex):
            references = experiment(experiment=str(little), store=str(store.root), resources={"workers": 0})
        assert list(references) == ADDRESSES
        return task_states(FlowRunFilter(tags=FlowRunFilterTags(all_=[name])), len(ADDRESSES))

    # Prefect has not seen these artifacts yet.
    before = {a.stage: a.manifest.provenance["started"] for a in store.committed()}
    assert set(run().values()) == {"Cached"}
    assert {a.stage: a.manifest.provenance["started"] for a in store.committed()} == before
    sae = store.committed("train")[0].path / "sae.safetensors"
    sae.write_bytes(sae.read_bytes()[:-1])
    classifier = store.committed("masking")[0].manifest.inputs["classifier"]
    shutil.rmtree(store.at("classifier", classifier).path)
    states = run()
    assert states.pop("train/relu") == states.pop("classifier/shapes-clip-dataset") == "Completed"
    assert set(states.values()) == {"Cached"}


@pytest.mark.filterwarnings("ignore:Logger 'prefect.task_runs'")
@pytest.mark.parametrize(("error", "n_calls"), [(OSError("the mount is away"), 3), (ValueError("a bug"), 1)])
def test_only_the_environment_is_tried_again(
    in_server: Server, serial: Store, tmp_path: Path, error: Exception, n_calls: int
) -> None:
    calls = []

    def fail() -> Artifact:
        calls.append(error)
        raise error

    task = run_stage.with_options(
        result_storage=tmp_path, retry_delay_seconds=0, refresh_cache=True, task_run_name="index/fails"
    )
    with pytest.raises(type(error)):
        task(
            experiment="e",
            address="index/fails",
            stage="index",
            key="0" * 64,
            device="cpu",
            build=Build(fail),
        )
    assert len(calls) == n_calls


def test_a_scheduler_of_ones_own_and_a_part_that_fails(in_server: Server, store: Store, little: Path) -> None:
    nodes = {node.address: node for node in parse(little.read_text(), "little").nodes()}
    inputs = {
        role: find(store, nodes[address]) for role, address in nodes["statistics/statistics"].inputs.items()
    }
    stage, config = nodes["statistics/statistics"].stage, nodes["statistics/statistics"].config
    assert isinstance(stage, PartStage)
    out = store.begin(store.at("statistics", "0" * 64))
    n_parts = stage.prepare(config, inputs, out, Runtime())
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        DaskParts(cluster.scheduler_address) as map_parts,
        pytest.raises(IndexError) as raised,
    ):
        # There is no such part; the others are done all the same.
        map_parts(stage, config, inputs, out, Runtime(), [*range(n_parts), n_parts + 7])
    assert any(f"part {n_parts + 7}" in note for note in raised.value.__notes__)
    assert any(f"building statistics {out.key[:16]}" in note for note in raised.value.__notes__)


def find(store: Store, node: Node) -> Artifact:
    [artifact] = store.committed(node.stage.name)
    return artifact


def test_slugs_are_what_prefect_accepts() -> None:
    assert slug("My_run-1: train/Relu.x") == "my-run-1-train-relu-x"
