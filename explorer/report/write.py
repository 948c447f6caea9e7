"""`Report`: the pages of one experiment as files, in a folder that is there whole or not at all."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from patchsae.explorer.app import PAGES
from patchsae.explorer.content import Content, dump
from patchsae.explorer.errors import Absent
from patchsae.explorer.pictures import SIZES, encoded
from patchsae.explorer.report.bundle import bundle
from patchsae.explorer.report.contents import Choice, Contents, Picture
from patchsae.explorer.report.one import OneExperiment
from patchsae.explorer.resources import routes
from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.text import size
from patchsae.storage.atomic import (
    exchange,
    explaining_full_disk,
    make_folder,
    nearest_folder,
    sync_file,
    temporaries_of,
)
from patchsae.storage.errors import Damaged, UserError
from patchsae.storage.store import Store

MARK = "report.json"
"""The file by which a folder is known to be a report. It is written last."""
_SCRIPT, _ENTRY = "explorer.js", "main.js"
_SAMPLES = 3
# What stands for a picture whose original is gone.
_TILE = encoded(Image.new("RGB", (8, 8), (136, 136, 136)), SIZES[0])
_POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' file:; img-src 'self' file: data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Size:
    """How large a report is, or may become."""

    n_files: int
    n_bytes: int

    def __str__(self) -> str:
        return f"{size(self.n_bytes)} in {self.n_files:,} files"


class Report:
    """The pages of one experiment of a store. Raises UserError if the store has no record of it, or for a wrong
    choice."""

    def __init__(self, store: Store, experiment: str, choice: Choice | None = None) -> None:
        self._library = OneExperiment(store, experiment)
        self._contents = Contents(self._library, choice or Choice())
        self._hidden = _hidden(store)
        self.left_out = self._contents.left_out()

    def forecast(self) -> Size:
        """At most how large it becomes, from a few parts of each kind."""
        kinds: dict[str, list[str]] = defaultdict(list)
        for path in self._contents.paths:
            kinds[path.split("/")[0]].append(path)
        n_bytes = 0.0
        for paths in kinds.values():
            few = paths[:: max(1, len(paths) // _SAMPLES)][:_SAMPLES]
            n_bytes += len(paths) * sum(len(self._script(path)) for path in few) / len(few)
        shown = list(self._contents.pictures.values())
        few_pictures = shown[:: max(1, len(shown) // _SAMPLES)][:_SAMPLES]
        n_pictures = self._contents.n_pictures_at_most()
        files = [content for one in few_pictures for _, content in self._files(one)]
        each = max(1, len(few_pictures))
        n_bytes += n_pictures * sum(len(data) for data in files) / each
        n_files = len(self._contents.paths) + round(n_pictures * len(files) / each)
        return Size(n_files, round(n_bytes))

    def write(self, folder: Path, replace: bool = False, reporter: Reporter | None = None) -> Size:
        """Makes `folder`, with `replace` in the place of the report that it holds. Returns its size.

        A process that is killed leaves the folder as it was. Raises UserError if something else is there, or if the
        disk is too small.
        """
        check(folder, replace)
        new = folder.with_name(f".{folder.name}.{platform.node()}-{os.getpid()}.tmp")
        _remove_leftovers(folder)
        try:
            with explaining_full_disk(folder):
                make_folder(new)
                self._fill(new, reporter or Reporter())
                total = _size(new)
                _put(new, folder)
        except PermissionError:
            raise UserError(f"{folder}: nothing can be written there; give another folder.") from None
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return total

    def _fill(self, new: Path, reporter: Reporter) -> None:
        for name, data in page_files().items():
            _write(new / name, data)
        paths = self._contents.paths
        with reporter.bar("report", len(paths), "parts") as bar:
            for path in bar.over(paths):
                _write(new / "data" / f"{path}.js", self._script(path))
        pictures = list(self._contents.pictures.values())
        with (
            reporter.bar("report, pictures", len(pictures), "images") as bar,
            ThreadPoolExecutor(os.cpu_count()) as pool,
        ):
            for files in bar.over(pool.map(lambda one: list(self._files(one)), pictures)):
                for name, data in files:
                    _write(new / name, data)
        mark = {
            "report_of": self._library.experiment,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        _write(new / MARK, json.dumps(mark).encode())
        sync_file(new / MARK)

    def _script(self, path: str) -> bytes:
        """A script that hands the value of a resource, or the sentence why there is none, to the pages."""
        try:
            said = dump(self._contents.value(path))
        except UserError as error:
            status = 404 if isinstance(error, Absent) else 409 if isinstance(error, Damaged) else 400
            said = b"null," + dump({"status": status, "error": str(error)})
        for hidden, shown in self._hidden:
            said = said.replace(hidden, shown)
        return b"patchsae.receive(" + dump(path) + b"," + said + b");\n"

    def _files(self, picture: Picture) -> Iterator[tuple[str, bytes]]:
        """The files of a picture, by their paths in the report: each of its sizes, and its ground truth. None where the
        store has forgotten the image."""
        name = f"{picture.image_set}/{picture.image}"
        try:
            for pixels in sorted(picture.sizes):
                found = self._file(f"picture/{picture.view}/{picture.image}", {"size": str(pixels)})
                is_there = found.media_type == "image/webp"
                yield f"pictures/{name}-{pixels}.webp", found.data if is_there else _TILE
            if self._contents.has_truth.get(picture.view):
                yield f"truth/{name}.png", self._file(f"truth/{picture.view}/{picture.image}", {}).data
        except Absent:
            return

    def _file(self, path: str, query: Mapping[str, str]) -> Content:
        resource, parts = routes.find(path, among=routes.FILES)
        found = resource.function(self._library, {**query, **parts})
        assert isinstance(found, Content)
        return found


def page_files() -> dict[str, bytes]:
    """The files that every report has: its page, script, style and what they need, by their paths."""
    files = {
        path.relative_to(PAGES).as_posix(): path.read_bytes()
        for path in sorted(PAGES.rglob("*"))
        if path.is_file() and (path.suffix != ".js" or path.parent.name == "uplot" or "vendor" in path.parts)
    }
    files["index.html"] = page_of_report(files["index.html"].decode()).encode()
    files[_SCRIPT] = bundle(PAGES, _ENTRY).encode()
    return files


def page_of_report(html: str) -> str:
    """The page `index.html` of the server as that of a report: one classic script, and addresses beside the page."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    for pattern, text in (
        (r'data-mode="server"', 'data-mode="report"'),
        (
            r'<script src="(?:pages/)?main\.js" type="module"></script>',
            f'<script src="{_SCRIPT}" defer></script>',
        ),
        (r'<meta charset="utf-8">', rf'<meta charset="utf-8">\n  {policy}'),
    ):
        html, n = re.subn(pattern, text, html)
        assert n == 1, f"index.html: has {pattern} {n} times"
    return re.sub(r'(src|href)="/?pages/', r'\1="', html)


def check(folder: Path, replace: bool) -> None:
    """Raises UserError if a report cannot be put there: into a folder that holds something else, or a report that is
    not to be replaced."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a new folder.")
    if (folder / MARK).is_file():
        if not replace:
            raise UserError(
                f"{folder}: holds a report already; give another folder, or --force to replace it."
            )
    elif any(folder.iterdir()):
        raise UserError(f"{folder}: holds files that are no report; give a new folder.")


def check_space(folder: Path, needed: Size) -> None:
    """Raises UserError if the disk has too little room for a report."""
    free = shutil.disk_usage(nearest_folder(folder.absolute())).free
    if needed.n_bytes > free:
        raise UserError(
            f"{folder}: the report may take {size(needed.n_bytes)}, and the disk has {size(free)} left; free some "
            "space, or choose fewer latents with --latents."
        )


def _hidden(store: Store) -> list[tuple[bytes, bytes]]:
    """What no report may tell, and what stands for it: where the store and the user's folder are on this machine."""
    roots = {str(store.root.absolute()), str(store.root.resolve())}
    words = [(root, "the store") for root in sorted(roots, key=len, reverse=True)]
    words.append((f"{Path.home()}/", "~/"))
    return [(dump(word)[1:-1], text.encode()) for word, text in words]


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _put(new: Path, folder: Path) -> None:
    """Gives a finished folder its name, in one step."""
    if folder.is_dir():
        # What was there has the temporary name now, and is deleted.
        exchange(new, folder)
    else:
        new.rename(folder)
        sync_file(folder.absolute().parent)


def _remove_leftovers(folder: Path) -> None:
    """Deletes what killed processes of this machine left of a report of this name."""
    for leftover in temporaries_of(folder):
        host, _, pid = leftover.name.removesuffix(".tmp").removeprefix(f".{folder.name}.").rpartition("-")
        if host == platform.node() and pid.isdecimal() and not _lives(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _size(folder: Path) -> Size:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Size(len(sizes), sum(sizes))
