"""What Ctrl-C does to a run that waits."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time

import pytest

from patchsae.flows.cli.signals import Stopped, exit_status, stopped_by_signals
from tests.support.prefect_server import ROOT

# A wait that ends by itself, so that the test does not hang where Ctrl-C does not reach it.
WAITING = """
import threading
from patchsae.flows.cli.signals import waking_at_interrupt
waking_at_interrupt()
import polars
over = threading.Event()
threading.Timer(30, over.set).start()
print("waits", flush=True)
try:
    over.wait()
except KeyboardInterrupt:
    print("woken" if not over.is_set() else "waited to the end")
import os; os._exit(0)
"""


def test_ctrl_c_wakes_a_run_that_waits_for_another_thread() -> None:
    process = subprocess.Popen([sys.executable, "-uc", WAITING], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == "waits\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0] == "woken\n"


def test_an_error_after_a_signal_is_its_consequence() -> None:
    """An import that swallows an interrupt leaves a package half loaded, which fails in its own way."""
    with pytest.raises(Stopped) as found, stopped_by_signals():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise RecursionError("the package is half loaded")
    assert exit_status(found.value) == 143
    assert isinstance(found.value.__cause__, RecursionError)


def test_an_error_without_a_signal_stays_itself() -> None:
    with pytest.raises(RecursionError), stopped_by_signals():
        raise RecursionError("a real one")
