"""File locks, which the system releases when their process dies, however it dies.

A lock is a file, empty or with a note of who holds it. It may be deleted by a process that holds it alone: who
waited for it then notices that the file has gone and locks a new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from patchsae.storage.errors import UserError

_OTHER_FILES = 1024


class Busy(Exception):
    """Another process holds the lock."""


def refuse() -> None:
    """An `on_wait` of `lock` for callers that do not want to wait."""
    raise Busy


@contextlib.contextmanager
def lock(path: Path, on_wait: Callable[[], None] | None = None, shared: bool = False) -> Iterator[None]:
    """Holds the lock `path`: alone, or with `shared` together with other shared holders.

    If another process stands in the way, `on_wait` is called once, and then this process waits. Raises
    UserError if the file cannot be made or opened.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        with _opened(path) as file:
            try:
                _flock(file, path, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                _flock(file, path, kind)
            if not _is_at(path, file):
                continue
            yield
            return


@contextlib.contextmanager
def lock_with_note(path: Path, note: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock `path` alone, with a note in it that says who holds it.

    If another process holds it, `on_wait` is called once with that process's note (which is empty if it has just
    taken the lock), and then this process waits. Raises UserError as `lock` does.
    """

    def waiting() -> None:
        on_wait(path.read_text(errors="replace") if path.exists() else "")

    with lock(path, waiting):
        path.write_text(note)
        yield


def _opened(path: Path) -> BinaryIO:
    """The file of a lock, which is made if it is not there.

    NFS locks only what is opened for reading and writing. A file of another user, or on a disk that is mounted
    for reading, is opened for reading.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+b")
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EROFS) and path.is_file():
            return path.open("rb")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{path}: cannot be locked ({error.strerror}); a store needs a folder that can be "
            "written to, in which this is a file."
        ) from None


def _flock(file: BinaryIO, path: Path, kind: int) -> None:
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(
            f"{path}: cannot be locked ({error.strerror}); put the store on a file system with locks."
        ) from None


def _is_at(path: Path, file: BinaryIO) -> bool:
    """Whether `path` is still the file that was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def allow_open_files(n: int) -> None:
    """Lets this process hold `n` locks beside the files it has open, as far as the system allows that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def is_locked(path: Path) -> bool:
    """Whether a running process holds the `lock` of this file alone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
