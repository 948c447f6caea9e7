"""`FileRecord`: size and digest of a file, with which every file is checked before it is used."""

from __future__ import annotations

import builtins
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from patchsae.storage.errors import Damaged, UserError
from patchsae.storage.keys import digest_bytes, digest_file

# The files that this process has found sound: path, size, time of change, inode, digest.
_Sound = tuple[str, int, int, int, str]
_sound: set[_Sound] = set()


@dataclass(frozen=True)
class FileRecord:
    """A file of an artifact: path relative to its folder, size in bytes, sha256."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def of_bytes(cls, path: str, data: builtins.bytes) -> FileRecord:
        """The record of a file that holds `data`."""
        return cls(path, len(data), digest_bytes(data))

    def is_inside(self) -> bool:
        """Whether the path leads to a place inside the artifact's folder."""
        path = PurePosixPath(self.path)
        return bool(path.parts) and not path.is_absolute() and ".." not in path.parts

    def has_right_size(self, root: Path) -> bool:
        """Whether there is a file of this size. It is not read."""
        found = _regular(root / self.path)
        return found is not None and found.st_size == self.bytes

    def is_sound(self, root: Path) -> bool:
        """Whether the file has this size and this digest. It is read, each time."""
        try:
            return self.has_right_size(root) and digest_file(root / self.path) == self.sha256
        except OSError:
            return False

    def read(self, root: Path) -> builtins.bytes:
        """The content of the file. Raises UserError if it is not what was written."""
        try:
            data = read_regular(root / self.path)
        except OSError as error:
            raise Damaged(f"{root / self.path}: cannot be read ({error.strerror}); {REMEDY}") from None
        if digest_bytes(data) != self.sha256:
            raise Damaged(f"{root / self.path}: is not what was written (digest or size differ); {REMEDY}")
        return data

    def check(self, root: Path) -> None:
        """Raises UserError if the file is not what was written.

        A process reads a file for this only once, as long as its size, its time of change and its inode stay.
        """
        path = root / self.path
        found = _regular(path)
        if found is not None:
            seen = (str(path), found.st_size, found.st_mtime_ns, found.st_ino, self.sha256)
            if seen in _sound:
                return
            if self.is_sound(root):
                _sound.add(seen)
                return
        raise Damaged(f"{path}: is not what was written (digest or size differ); {REMEDY}")


def read_regular(path: Path) -> bytes:
    """The content of a regular file. Raises OSError for anything else, such as a pipe that nobody writes to."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return path.read_bytes()


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of `~` or `~user`. Raises UserError if there is no such folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: no such user has a home folder here; write the whole path.") from None


def changed_at(path: Path) -> float:
    """When a file or folder was last changed, in seconds since 1970; 0 if it has gone meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


REMEDY = (
    "`patchsae verify --discard` drops what is damaged and what was made from it, and the next run computes "
    "that again."
)


def _regular(path: Path) -> os.stat_result | None:
    """What the system knows of a file; None if there is none, or something else in its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None
