"""The Dask cluster that a run starts: who can reach it, what signals do to it, and how it ends."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import psutil
import pytest

from tests.support.prefect_server import ROOT

N_WORKERS = 2
HOLD = f"""
from patchsae.flows.map_parts import DaskParts
from patchsae.pipeline.core.progress import ConsoleReporter
with DaskParts("local") as parts:
    print(parts._local_cluster({N_WORKERS}, ConsoleReporter())[0], flush=True)
    input()
"""


def start(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that starts a cluster, prints the address of the scheduler, and waits."""
    (tmp_path / "tmp").mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")},
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that has started a cluster, and the address of the scheduler."""
    process = start(tmp_path)
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def everyone(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid)
    return [found, *found.children(recursive=True)]


def status(host: str, port: int, page: str) -> int | None:
    """The HTTP status of a page, or None where no HTTP is spoken."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    try:
        connection.request("GET", page)
        return connection.getresponse().status
    except (ConnectionError, http.client.BadStatusLine):
        return None
    finally:
        connection.close()


def test_it_listens_to_this_machine_only_and_shows_nothing(
    cluster: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, _ = cluster
    listening = [
        found.laddr
        for one in everyone(process)
        for found in one.net_connections(kind="inet")
        if found.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > N_WORKERS
    assert {address.ip for address in listening} == {"127.0.0.1"}
    pages = (
        "/",
        "/status",
        "/info/main/workers.html",
        "/info/logs.html",
        "/metrics",
        "/health",
        "/sitemap.json",
    )
    for address in listening:
        for page in pages:
            assert status(address.ip, address.port, page) is None, (address, page)
    # What it writes lies in the folder that goes with the run.
    assert [path.name[:13] for path in (tmp_path / "tmp").iterdir() if "dask" in path.name] == []
    assert list((tmp_path / "tmp").glob("patchsae-run-*/dask-scratch-space/worker-*"))
    process.communicate("\n")
    assert process.returncode == 0
    assert list((tmp_path / "tmp").glob("patchsae-*")) == []


def test_strangers_are_refused(cluster: tuple[subprocess.Popen[str], str]) -> None:
    _, address = cluster
    stranger = distributed.Security.temporary()
    for where, security in ((address, stranger), (address.replace("tls:", "tcp:"), None)):
        with pytest.raises(OSError):
            distributed.Client(where, security=security, timeout=3, set_as_default=False)


def test_workers_leave_signals_to_the_main_process(cluster: tuple[subprocess.Popen[str], str]) -> None:
    process, _ = cluster
    workers = [one for one in everyone(process)[1:] if "spawn_main" in " ".join(one.cmdline())]
    assert len(workers) == N_WORKERS
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            worker.send_signal(number)
    with pytest.raises(psutil.TimeoutExpired):
        workers[0].wait(timeout=2)
    assert all(worker.is_running() for worker in workers)
    _, error = process.communicate("\n")
    assert process.returncode == 0
    assert [line for line in error.splitlines() if not line.startswith("start of Dask: ")] == []
    assert psutil.wait_procs(workers, timeout=60)[1] == []


def test_its_start_is_shown_and_workers_end_with_a_killed_main_process(
    cluster: tuple[subprocess.Popen[str], str],
) -> None:
    process, _ = cluster
    helpers = everyone(process)[1:]
    assert len(helpers) >= N_WORKERS
    process.kill()
    process.wait()
    assert psutil.wait_procs(helpers, timeout=60)[1] == []
    assert process.stderr is not None
    said = process.stderr.read()
    assert "start of Dask: 0/2 workers" in said and "start of Dask: 2/2 workers" in said


@pytest.mark.parametrize("after", [0.0, 0.3, 1.0])
def test_an_interrupt_while_it_starts(tmp_path: Path, after: float) -> None:
    """A terminal sends Ctrl-C to the workers too, which are then importing."""
    process = start(tmp_path)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("start of Dask: 0/")
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert said.count("Traceback") == said.count("KeyboardInterrupt") == 1, said
