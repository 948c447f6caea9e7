"""SIGTERM and SIGHUP end a command as Ctrl-C does: a sentence, nothing left behind, 128 + the number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from patchsae.flows.cli.signals import Stopped, exit_status, stopped_by_signals
from tests.support.prefect_server import ROOT, quiet_environment

# The command line, held where a test wants it.
WHILE_PLANNING = """
import sys, time
from patchsae.flows.cli import app, run
def plan(*arguments):
    print("here", flush=True)
    time.sleep(600)
run.open_work = plan
app.app()
"""
WHILE_THE_SERVER_STARTS = """
import sys, time
from patchsae.flows import server
from patchsae.flows.cli import app
def answers(url):
    print("here", flush=True)
    time.sleep(1)
    return False
server._answers = answers
app.app()
"""
BOTH = (signal.SIGTERM, signal.SIGHUP)
pytestmark = pytest.mark.usefixtures("hangups")
Held = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    """Starts `patchsae run demo`, and returns once it is where the given code holds it."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "tmp").mkdir()

    def start(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "run", "demo", "--store", str(tmp_path / "store")],
            env=quiet_environment(tmp_path / "prefect") | {"TMPDIR": str(tmp_path / "tmp")},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert any(line == "here\n" for line in process.stdout)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def assert_ended(process: subprocess.Popen[str], number: signal.Signals, tmp_path: Path) -> None:
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + number, error
    assert error.count("patchsae: interrupted;") == 1 and "Traceback" not in error, error
    assert error.splitlines()[-1].startswith("patchsae: interrupted;")
    assert list((tmp_path / "tmp").glob("patchsae-*")) == []


@pytest.mark.parametrize("number", [*BOTH, signal.SIGINT])
def test_while_it_plans(number: signal.Signals, held: Held, tmp_path: Path) -> None:
    process = held(WHILE_PLANNING)
    process.send_signal(number)
    assert_ended(process, number, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_while_the_server_starts(number: signal.Signals, held: Held, tmp_path: Path) -> None:
    process = held(WHILE_THE_SERVER_STARTS)
    servers = psutil.Process(process.pid).children(recursive=True)
    assert servers
    # As a cluster's scheduler does it: to every process of the job, and once more.
    for target in (*servers, process, process):
        target.send_signal(number)
    assert_ended(process, number, tmp_path)
    assert psutil.wait_procs(servers, timeout=60)[1] == []


def test_killed_while_the_server_starts(held: Held, tmp_path: Path) -> None:
    process = held(WHILE_THE_SERVER_STARTS)
    servers = psutil.Process(process.pid).children(recursive=True)
    assert list((tmp_path / "tmp").glob("patchsae-*"))
    process.kill()
    process.communicate()
    assert psutil.wait_procs(servers, timeout=60)[1] == []
    assert list((tmp_path / "tmp").glob("patchsae-*")) == []


def test_nohup_stays_nohup(held: Held, tmp_path: Path) -> None:
    # What `nohup` does.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = held(WHILE_PLANNING)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert_ended(process, signal.SIGTERM, tmp_path)


@pytest.mark.parametrize("number", BOTH)
def test_only_the_first_interrupts(number: signal.Signals) -> None:
    before = [signal.getsignal(one) for one in BOTH]
    cleaned = False
    with pytest.raises(KeyboardInterrupt) as raised, stopped_by_signals():
        try:
            os.kill(os.getpid(), number)
        finally:
            for one in BOTH:
                os.kill(os.getpid(), one)
            cleaned = True
    assert cleaned
    assert exit_status(raised.value) == 128 + number
    assert [signal.getsignal(one) for one in BOTH] == before
    assert exit_status(KeyboardInterrupt()) == 130


def test_a_signal_that_was_deferred_ends_the_same() -> None:
    """Training notes a signal and passes it on, to the handler it found, at the end of a step."""
    noted: list[int] = []
    with pytest.raises(Stopped) as raised, stopped_by_signals():
        found = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, found)
        assert callable(found)
        found(noted[0], None)
    assert raised.value.number == signal.SIGTERM
