"""Unpacks the zip file of a data set. What it holds was made by others, so it may not write outside its folder."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.text import size
from patchsae.storage.errors import UserError

_JUNK = ("__MACOSX", ".DS_Store")


class Unsound(UserError):
    """The archive is damaged, or is none of a data set."""


def unpack(archive: Path, folder: Path, marker: str, reporter: Reporter) -> None:
    """Unpacks the folder of an archive in which `marker` lies into the new folder `folder`.

    Authors pack a data set with or without the folder that holds it. `marker` is a file or folder in that folder.
    Raises Unsound, before anything is written, if there is no such folder, or if a file would lie outside it, and
    UserError if the disk is too small.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [_checked(archive, m) for m in opened.infolist() if not _is_junk(m.filename)]
            above = _above(archive, [_parts(m) for m in members], marker)
            chosen = [m for m in members if not m.is_dir() and _parts(m)[: len(above)] == above]
            n_bytes = sum(m.file_size for m in chosen)
            folder.mkdir(parents=True)
            if n_bytes > (free := shutil.disk_usage(folder).free):
                raise UserError(
                    f"{folder}: unpacking {archive.name} takes {size(n_bytes)}, and {size(free)} are free; free some and "
                    "run the same command again."
                )
            with reporter.bar(f"unpacking {archive.name}", len(chosen), "files") as bar:
                for member in bar.over(chosen):
                    _write(opened, member, folder.joinpath(*_parts(member)[len(above) :]))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, FileExistsError, NotADirectoryError) as error:
        raise Unsound(f"{archive}: cannot be unpacked ({error}); delete it and fetch it again.") from error


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(member) as source, path.open("xb") as target:
        shutil.copyfileobj(source, target)


def _parts(member: zipfile.ZipInfo) -> tuple[str, ...]:
    return PurePosixPath(member.filename).parts


def _is_junk(name: str) -> bool:
    return any(part in _JUNK for part in PurePosixPath(name).parts)


def _checked(archive: Path, member: zipfile.ZipInfo) -> zipfile.ZipInfo:
    kind = stat.S_IFMT(member.external_attr >> 16)
    parts = PurePosixPath(member.filename)
    if parts.is_absolute() or ".." in parts.parts or "\\" in member.filename or "\0" in member.filename:
        raise Unsound(
            f"{archive}: has the path {member.filename!r}, which leads out of its folder; it is not unpacked."
        )
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Unsound(f"{archive}: {member.filename!r} is no file but a link or device; it is not unpacked.")
    if member.flag_bits & 1:
        raise Unsound(f"{archive}: is encrypted; it is not unpacked.")
    return member


def _above(archive: Path, paths: Sequence[tuple[str, ...]], marker: str) -> tuple[str, ...]:
    """The folders of the archive above `marker`, where it lies highest."""
    found = [parts[: parts.index(marker)] for parts in paths if marker in parts]
    if not found:
        there = ", ".join(sorted({parts[0] for parts in paths if parts})[:10]) or "nothing"
        raise Unsound(f"{archive}: holds no `{marker}`, but {there}; unpack it by hand.")
    return min(found, key=len)
