"""`patchsae run` in a process of its own is sent a signal at many instants, then started again.

SIGKILL, SIGTERM, SIGHUP and SIGINT in turn. The store ends as that of the undisturbed run; no process and no
temporary file stays behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from patchsae.storage.store import Store
from tests.faults.world import LITTER, SILENT, TRACEBACK, Tally, World, check_whole

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# The command line does not know the tiny model, so it is run by a program that adds it once the command has begun.
_PROGRAM = """
from typer.core import TyperGroup
from patchsae.flows.cli.app import app

invoke = TyperGroup.invoke

def prepared(group, context):
    from tests.faults.world import prepare_process
    prepare_process()
    return invoke(group, context)

TyperGroup.invoke = prepared
app()
"""
_SECONDS = 120.0


def kills(world: World, n_tries: int) -> Tally:
    """Sends signals at instants that are evenly spread over the time of a whole run."""
    tally = Tally("kill of the command line")
    temporary = world.folder / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    store = Store(world.folder / "killed")
    shutil.rmtree(store.root, ignore_errors=True)
    started = time.monotonic()
    _wait(_start(world, store, temporary), tally, "an undisturbed run", 0)
    whole = time.monotonic() - started
    check_whole(world, _without_prefect(store), tally, "an undisturbed run")
    for number in range(n_tries):
        tally.tries += 1
        which = SIGNALS[number % len(SIGNALS)]
        after = whole * (number + 1) / (n_tries + 1)
        done = f"{which.name} after {after:.1f} of {whole:.1f} s"
        shutil.rmtree(store.root, ignore_errors=True)
        process = _start(world, store, temporary)
        time.sleep(after)
        family = _family(process)
        process.send_signal(which)
        expected = -which if which == signal.SIGKILL else 128 + which
        _wait(process, tally, done, expected)
        _, alive = psutil.wait_procs(family, timeout=30)
        if alive:
            tally.fault(LITTER, done, f"processes: {[p.pid for p in alive]}")
        # timm imports wandb where that is installed, which makes two empty folders.
        left = sorted(path.name for path in temporary.iterdir() if "wandb" not in path.name)
        if left:
            tally.fault(LITTER, done, f"in TMPDIR: {left}")
        _wait(_start(world, store, temporary), tally, f"{done}; the same again", 0)
        check_whole(world, _without_prefect(store), tally, done)
    return tally


def _start(world: World, store: Store, temporary: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            _PROGRAM,
            "run",
            str(world.yaml),
            "--store",
            str(store.root),
            "--dask",
            "none",
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(temporary), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _wait(process: subprocess.Popen[str], tally: Tally, done: str, expected: int) -> None:
    """Waits for the end of a process.

    It may have ended well before the signal came, or the command may not have begun yet, or just have ended.
    """
    said, _ = process.communicate(timeout=_SECONDS)
    if process.returncode < 0 and (not said or "Done." in said):
        return
    if process.returncode not in (expected, 0):
        tally.fault(SILENT, done, f"exit status {process.returncode}, not {expected}: {said[-500:]}")
    if "Traceback" in said:
        tally.fault(TRACEBACK, done, said[-1500:])
    elif expected > 0 and process.returncode == expected and "interrupted" not in said:
        tally.fault(TRACEBACK, done, f"no sentence: {said[-500:]}")


def _without_prefect(store: Store) -> Store:
    """The store without Prefect's references to artifacts, which runs without Prefect do not write."""
    shutil.rmtree(store.root / "prefect", ignore_errors=True)
    return store
