"""Runs a command until standard input is closed, and then kills it with all that it has started.

    python -m tests.support.leash COMMAND ...

Standard input is closed however the process at its other end goes, so that killed tests leave nothing running.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

import psutil


def _kill_at_end_of_input(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1):
        pass
    with contextlib.suppress(psutil.NoSuchProcess):
        leader = psutil.Process(process.pid)
        # Stopped, it starts no more while its descendants are looked up.
        leader.suspend()
        for one in (*leader.children(recursive=True), leader):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


if __name__ == "__main__":
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_kill_at_end_of_input, args=(process,), daemon=True).start()
    sys.exit(process.wait())
