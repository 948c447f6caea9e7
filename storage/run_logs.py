"""The log files of runs, one per run, in the folder `logs` of a store. Nothing ever reads them but people."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
from pathlib import Path
from typing import TextIO

from patchsae.storage.files import changed_at

KEPT = 50
"""The newest logs that are kept. Older ones are deleted when a run begins, but not that of a run that goes on."""
_SUFFIX = ".log"


def open_log(folder: Path, name: str) -> TextIO:
    """A new file for the run that begins now, called `NAME-DATE-TIME.log`, which no other process writes to.

    It is locked while it is open. Deletes the oldest ones beyond `KEPT`. Raises OSError if the folder or the
    file cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    n_same = 1
    while True:
        path = folder / f"{name}-{started}{'' if n_same == 1 else f'-{n_same}'}{_SUFFIX}"
        try:
            file = path.open("x", encoding="utf-8", errors="replace")
            break
        except FileExistsError:
            n_same += 1
    # Some file systems have no locks. The newest files are kept without them.
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _delete_old(folder)
    return file


def _delete_old(folder: Path) -> None:
    logs = sorted(folder.glob(f"*{_SUFFIX}"), key=changed_at, reverse=True)
    for path in logs[KEPT:]:
        # Another run may delete it too. One that goes on has it locked.
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink()
