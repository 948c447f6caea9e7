"""Atomic writes, removal and a readable error for a full disk, with which all of `storage` writes files."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from patchsae.storage.errors import UserError

_TEMPORARY = ".tmp"
# Arguments of the system calls that exchange two names (their values are the same on Linux and macOS).
_EXCHANGE = 2
_WORKING_FOLDER = -100


def sync_file(path: Path) -> None:
    """Forces the content of a file or a folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, *data: bytes | memoryview) -> None:
    """Writes the buffers `data`, joined in their order, to `path`: all of them, or the file stays as it was.

    It writes a temporary file, forces it to the disk, renames it, and forces the folder to the disk. A folder
    of this name is deleted first. Raises UserError if something above it is no folder.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_file(path.parent)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it. Raises UserError if something else has the name of one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path}: is no folder; delete what is there and run again.") from None


def remove(path: Path) -> None:
    """Deletes whatever has this path: a file, a folder with all it holds, or a link; nothing if it is free."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        # Something above it may be a file, so that nothing can have this path.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def exchange(first: Path, second: Path) -> None:
    """Makes two folders change their names, in one step where the file system can do that.

    Elsewhere it takes three renames: a process that is killed between them leaves `first` without a folder.
    """
    if _exchange_at_once(first, second):
        sync_file(first.parent)
        return
    aside = first.with_name(f"{first.name}.aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    sync_file(first.parent)


def _exchange_at_once(first: Path, second: Path) -> bool:
    """Whether the system exchanged the two names: `renameat2` of Linux, `renamex_np` of macOS."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if hasattr(libc, "renameat2"):
        code = libc.renameat2(_WORKING_FOLDER, names[0], _WORKING_FOLDER, names[1], _EXCHANGE)
    elif hasattr(libc, "renamex_np"):
        code = libc.renamex_np(*names, _EXCHANGE)
    else:
        return False
    if code == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(first))


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
                if (target / name).is_dir():
                    raise UserError(f"{target / name}: is a folder where a file belongs; delete it.")
                write_atomic(target / name, content)
            if target is new:
                new.rename(folder)
                sync_file(folder.parent)
    except (PermissionError, NotADirectoryError):
        raise UserError(f"{folder}: nothing can be written there; give another folder.") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def temporaries_of(path: Path) -> list[Path]:
    """The temporary files that killed processes left of writing one file."""
    return list(path.parent.glob(f".{path.name}.*{_TEMPORARY}"))


def remove_temporaries(folder: Path) -> None:
    """Deletes the temporary files of killed processes. The caller must hold the lock of the folder."""
    for leftover in temporaries(folder):
        remove(leftover)


def temporaries(folder: Path) -> list[Path]:
    """The files below a folder that a process is writing, or that a killed process left."""
    return [path for pattern in (f".*{_TEMPORARY}", "*.partial") for path in folder.rglob(pattern)]


@contextlib.contextmanager
def explaining_full_disk(folder: Path) -> Iterator[None]:
    """Raises UserError instead of the OSError by which any library reports a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "has no inodes left, so no file can be made" if has_no_inodes(folder) else "is full"
            raise UserError(
                f"{folder}: the disk {what}; free some space (`patchsae gc` lists what no experiment "
                "needs) and run the same command again, finished parts are kept."
            ) from error
        raise


def has_no_inodes(folder: Path) -> bool:
    """Whether the disk of a folder has room for bytes but not for another file."""
    disk = os.statvfs(nearest_folder(folder))
    return disk.f_files > 0 and disk.f_favail == 0


def nearest_folder(path: Path) -> Path:
    """The folder itself if it exists, or else the nearest one above it that does."""
    while not path.is_dir():
        path = path.parent
    return path
