"""The temporary folder of a run, which is deleted however the run ends.

`run_folder` deletes it at the end of its `with` block. If the process is killed, the temporary server
deletes the folder as its last act (`server.py`). If that was killed too, the next run folder of this user
on this machine deletes it first: the file `lock` in it is locked (flock) by the processes that use the
folder, and the system drops the lock with the last of them. Age and process ids tell nothing, since clocks
jump and ids are used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "patchsae-run-"
_LOCK = "lock"
_current: RunFolder | None = None


@dataclass(frozen=True)
class RunFolder:
    """A folder that only this user can enter. Processes that use it too inherit the descriptor `lock`."""

    path: Path
    lock: int


@contextlib.contextmanager
def run_folder() -> Iterator[RunFolder]:
    """Provides the folder inside the `with` block. A block inside another one gets the same folder."""
    global _current
    if _current is not None:
        yield _current
        return
    delete_abandoned()
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    # The file gets its name when it is locked, so that a file of that name without a lock was abandoned.
    new = path / f"{_LOCK}.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new.rename(path / _LOCK)
        _current = RunFolder(path, lock)
        yield _current
    finally:
        _current = None
        delete(path)
        os.close(lock)


def delete(path: Path) -> None:
    """Deletes a run folder, from which something may be missing. The lock goes last: it tells what to delete."""
    with contextlib.suppress(OSError):
        for child in path.iterdir():
            if child.name != _LOCK:
                shutil.rmtree(child, ignore_errors=True)
                child.unlink(missing_ok=True)
        (path / _LOCK).unlink(missing_ok=True)
        try:
            path.rmdir()
        except OSError:
            # Something was written meanwhile, by a process that is about to end. The next run deletes it.
            (path / _LOCK).touch()


def delete_abandoned() -> None:
    """Deletes the run folders of this user that no living process holds.

    Others may write into the folder of temporary files. So what is deleted must be a folder, not a link to
    one, that belongs to this user and that nobody else can enter.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # The folder may go, or may not be ours to look into.
        with contextlib.suppress(OSError), _descriptor(path, os.O_RDONLY | os.O_DIRECTORY) as folder:
            if not _is_ours(folder):
                continue
            with _descriptor(_LOCK, os.O_RDWR, folder) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                delete(path)


def _is_ours(folder: int) -> bool:
    found = os.fstat(folder)
    return found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700


@contextlib.contextmanager
def _descriptor(path: Path | str, flags: int, folder: int | None = None) -> Iterator[int]:
    """Opens a file or folder that is no symbolic link. Raises OSError if it is one."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
