"""What Ctrl-C does to a run that waits."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

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
