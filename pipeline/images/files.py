"""Image files: which ones a folder has, and how the bytes of one are read. `pixels` decodes them."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from patchsae.pipeline.core.text import count
from patchsae.storage.errors import UserError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's names for the formats of `SUFFIXES`. Its decoder of JPEG also reads MPO, in which phones and
cameras store several JPEG images. Pillow knows over 40 formats; most of their decoders are little used."""
MAX_BYTES = 2**30

_ADDRESS = re.compile(r"( at)? \b0x[0-9a-f]+", re.IGNORECASE)
_FOLDERS = re.compile(r"(?<![\w./])/(?:[^\s/'\":]+/)+")
_NAMES_SHOWN = 3


@dataclass
class LeftOut:
    """What a folder holds besides the images that are taken, as paths below it."""

    hidden: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """One sentence for each sort of thing that was left out."""
        found = []
        if self.hidden:
            n = count(len(self.hidden), "hidden file or folder", "hidden files and folders")
            found.append(f"left out {n}: {names(self.hidden)} (`hidden: true` looks at them)")
        if self.links:
            n = count(len(self.links), "linked folder")
            found.append(f"left out {n}: {names(self.links)} (`follow_links: true` follows them)")
        if self.broken_links:
            n = count(len(self.broken_links), "link that leads nowhere", "links that lead nowhere")
            found.append(f"left out {n}: {names(self.broken_links)}")
        if self.others:
            n = count(len(self.others), "file that is no image", "files that are no images")
            found.append(f"left out {n} of the formats that are read: {_by_suffix(self.others)}")
        if self.beside:
            n = count(len(self.beside), "image that lies", "images that lie")
            found.append(f"left out {n} beside the class folders: {names(self.beside)}")
        if self.empty:
            n = count(len(self.empty), "class folder")
            found.append(f"left out {n} without an image: {names(self.empty)}")
        return found


def names(paths: Iterable[str], shown: int = _NAMES_SHOWN) -> str:
    """The first few of some paths, on one line: `a.jpg, b.jpg, c.jpg, ...`."""
    several = list(paths)
    first = [path if path.isprintable() else repr(path)[1:-1] for path in several[:shown]]
    return ", ".join([*first, "..."] if len(several) > shown else first)


def _by_suffix(paths: Iterable[str]) -> str:
    found = Counter(Path(path).suffix.lower() or "no suffix" for path in paths)
    return names((f"{n:,} {suffix}" for suffix, n in found.most_common()), 5)


@dataclass(frozen=True)
class Walk:
    """How a folder is searched: whether hidden files and folders, and links to folders, count.

    Links to files always count.
    """

    hidden: bool = False
    follow_links: bool = False

    def folders(self, folder: Path, root: Path, left_out: LeftOut) -> list[Path]:
        """The folders in a folder, sorted. Images beside them are noted in `left_out`, by their paths from `root`."""
        found, here = [], _identity(folder)
        for entry in self._entries(folder, root, left_out):
            path = Path(entry.path)
            if entry.is_dir():
                # A link to the folder itself would be a class that holds all others.
                if _identity(path) != here:
                    found.append(path)
            elif is_image(entry.name):
                left_out.beside.append(path.relative_to(root).as_posix())
            else:
                left_out.others.append(path.relative_to(root).as_posix())
        return found

    def images(self, folder: Path, root: Path, left_out: LeftOut) -> list[str]:
        """Every image file below a folder, as its path from `root` with slashes, sorted.

        Raises UserError if a folder cannot be listed.
        """
        found: list[str] = []
        pending = [(folder, frozenset({_identity(folder)}))]
        while pending:
            here, above = pending.pop()
            for entry in self._entries(here, root, left_out):
                path = Path(entry.path)
                if entry.is_dir():
                    # A link to a folder that contains it would be followed for ever.
                    if (identity := _identity(path)) not in above:
                        pending.append((path, above | {identity}))
                elif is_image(entry.name) and entry.is_file():
                    found.append(path.relative_to(root).as_posix())
                else:
                    left_out.others.append(path.relative_to(root).as_posix())
        return sorted(found)

    def _entries(self, folder: Path, root: Path, left_out: LeftOut) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"folder {folder}: cannot be listed ({reason(error)}).") from None
        for entry in found:
            path = Path(entry.path).relative_to(root).as_posix()
            if not self.hidden and entry.name.startswith("."):
                left_out.hidden.append(path)
            elif entry.is_symlink() and not is_there(Path(entry.path)):
                left_out.broken_links.append(path)
            elif not self.follow_links and entry.is_symlink() and entry.is_dir():
                left_out.links.append(path)
            else:
                yield entry


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def is_there(path: Path) -> bool:
    """Whether a path leads to a file or folder that can be looked at."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def is_image(name: str) -> bool:
    """Whether a file's name has the suffix of an image."""
    return Path(name).suffix.lower() in SUFFIXES


def image_files(folder: Path) -> list[Path]:
    """Every image file below a folder, sorted by path; no hidden ones, and none behind links to folders."""
    return [folder / path for path in Walk().images(folder, folder, LeftOut())]


def read_file(path: Path) -> bytes:
    """The content of a regular file of at most `MAX_BYTES`. Raises OSError for anything else."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("is no regular file")
    if found.st_size > MAX_BYTES:
        raise OSError(f"has {found.st_size:,} bytes, and at most {MAX_BYTES:,} are read")
    # A named pipe may take the place of the file after it was looked at. Opened so, it has no bytes; opened
    # plainly, it waits for a writer forever.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read()


def reason(error: Exception) -> str:
    """An error's message as one line that is the same in every run and on every machine.

    Addresses in memory are taken out of it, and the folders of absolute paths.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = _FOLDERS.sub("", _ADDRESS.sub("", " ".join(text.split())))[:300]
    if isinstance(error, OSError | SyntaxError | ValueError) and text:
        return text
    # The message of a KeyError, say, is the key alone.
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
