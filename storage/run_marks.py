"""The marks of runs that a server outside the store knows too, which tell whether such a run is alive.

A process that is killed cannot say so. So a run holds the lock of a file of its own while it lives, and
touches it every minute. The file that such a run leaves behind is not locked, and tells what the run was.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchsae.storage.atomic import remove
from patchsae.storage.locks import Busy, lock, refuse

_SECONDS_BETWEEN_TOUCHES = 60.0
# After this time without a touch, a run of another machine is taken for dead. Not every file system tells one
# machine of the locks of another.
SECONDS_OF_SILENCE = 900.0
SUFFIX = ".run"


def this_machine() -> str:
    """The name of this machine since it was started, among whose processes the system's locks hold for certain."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


@dataclass
class Mark:
    """The mark of a run that is alive: `name` and what is written in the file."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)

    def note(self, **values: Any) -> None:
        """Adds values to the file."""
        self.content |= values
        data = json.dumps(self.content).encode()
        # Never empty, also for a process that is killed in between: an empty file was no run's.
        with self.path.open("r+b") as file:
            file.write(data)
            file.truncate()


@dataclass(frozen=True)
class Abandoned:
    """What a run left that is no longer alive. `content` is empty if it was killed while it wrote that."""

    name: str
    content: dict[str, Any]
    seconds_of_silence: float


class RunMarks:
    """The marks in `folder`: one file `NAME.run` per run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def alive(self, name: str) -> Iterator[Mark]:
        """Marks the run as alive inside the `with` block. The mark is removed at its end, also after an error."""
        path = self._folder / f"{name}{SUFFIX}"
        with lock(path):
            mark = Mark(path)
            mark.note(pid=os.getpid(), host=socket.gethostname(), machine=this_machine())
            stop = threading.Event()
            thread = threading.Thread(target=_touch_until, args=(path, stop), daemon=True)
            thread.start()
            try:
                yield mark
            finally:
                stop.set()
                thread.join()
                remove(path)

    def bury(self, handle: Callable[[Abandoned], bool]) -> None:
        """Calls `handle` with every run that left its mark, and removes the mark if that returns True.

        Nobody else handles the same run meanwhile. A run of another machine is passed over until it has not
        touched its mark for `SECONDS_OF_SILENCE`.
        """
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            with contextlib.suppress(Busy), lock(path, refuse):
                if path.stat().st_size == 0:
                    # The run has just ended and removed its mark, and `lock` made the file anew.
                    remove(path)
                    continue
                content, silence = _read(path), _silence(path)
                is_certain = content.get("machine") == this_machine() or silence > SECONDS_OF_SILENCE
                if is_certain and handle(Abandoned(path.stem, content, silence)):
                    remove(path)


def _touch_until(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_SECONDS_BETWEEN_TOUCHES):
        with contextlib.suppress(OSError):
            os.utime(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _silence(path: Path) -> float:
    """The seconds since the file was touched, by the clock of its file system."""
    with tempfile.TemporaryFile(dir=path.parent) as now:
        return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime
