"""Servers and workers that tests start end with them, also if the tests are killed."""

from __future__ import annotations

import subprocess
import sys

import psutil

from tests.support.prefect_server import ROOT, on_a_leash

OWNER = """
import os, subprocess, sys
from tests.support.prefect_server import on_a_leash
process = on_a_leash([sys.executable, "-c", sys.argv[1]], os.environ)
print(process.stdout.readline(), flush=True)
process.wait()
"""
# In a session of its own, as Prefect's worker starts its runs.
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("up", flush=True)
time.sleep(600)
"""


def test_everyone_ends_with_a_killed_owner() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, PARENT], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None and owner.stdout.readline() == "up\n"
    descendants = psutil.Process(owner.pid).children(recursive=True)
    assert len(descendants) == 3
    owner.kill()
    owner.communicate()
    assert psutil.wait_procs(descendants, timeout=60)[1] == []


def test_it_ends_when_it_is_let_go() -> None:
    process = on_a_leash([sys.executable, "-c", PARENT], {})
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    descendants = psutil.Process(process.pid).children(recursive=True)
    assert len(descendants) == 2
    process.communicate()
    assert psutil.wait_procs(descendants, timeout=60)[1] == []
