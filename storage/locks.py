"""File locks, which the system releases when their process dies, however it dies.

A lock is an empty file. It may be deleted by a process that holds it alone: who waited for it then notices
that the file has gone and locks a new one.
"""

from __future__ import annotations

import contextlib
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
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                fcntl.flock(file, kind)
            if not _is_at(path, file):
                continue
            yield
            return


def _opened(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        if isinstance(error, IsADirectoryError | FileExistsError | NotADirectoryError):
            raise UserError(
                f"{path}: cannot be locked ({error.strerror}); delete it and run again."
            ) from None
        raise


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
