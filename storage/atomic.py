"""Atomic writes, locks and a readable error for a full disk, with which all of `storage` writes files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from patchsae.storage.errors import UserError

_TEMPORARY = ".tmp"


def sync_file(path: Path) -> None:
    """Forces the content of a file or a folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, *data: bytes | memoryview) -> None:
    """Writes the buffers `data`, joined in their order, to `path`: all of them, or the file stays as it was.

    It writes a temporary file, forces it to the disk, renames it, and forces the folder to the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_file(path.parent)


def write_folder(folder: Path, files: Mapping[str, bytes], replace: bool = False) -> None:
    """Makes a new folder with `files` (name -> content). If that fails, there is no folder.

    With `replace` the folder may exist: files of these names are replaced one by one, and other files stay.
    Raises UserError if the folder exists and `replace` is false, or if nothing can be written there.
    """
    if os.path.lexists(folder) and not replace:
        raise UserError(f"{folder}: is already there; give another folder, or --force to replace its files.")
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder.")
    new = folder.with_name(f".{folder.name}.{os.getpid()}{_TEMPORARY}")
    target = folder if folder.is_dir() else new
    try:
        with explaining_full_disk(folder):
            for name, content in files.items():
                write_atomic(target / name, content)
            if target is new:
                new.rename(folder)
                sync_file(folder.parent)
    except (PermissionError, NotADirectoryError):
        raise UserError(f"{folder}: nothing can be written there; give another folder.") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove_temporaries(folder: Path) -> None:
    """Deletes the temporary files of killed processes. The caller must hold the lock of the folder."""
    for pattern in (f".*{_TEMPORARY}", "*.partial"):
        for leftover in folder.rglob(pattern):
            leftover.unlink(missing_ok=True)


def is_locked(path: Path) -> bool:
    """Whether a running process holds the `lock` of this file."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def lock(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds an exclusive lock, which the system releases if this process dies.

    If another process holds the lock, `on_wait` is called once, and then this process waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def explaining_full_disk(folder: Path) -> Iterator[None]:
    """Raises UserError instead of the OSError by which any library reports a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{folder}: the disk is full; free some space (`patchsae gc` lists what no experiment "
                "needs) and run the same command again, finished parts are kept."
            ) from error
        raise
