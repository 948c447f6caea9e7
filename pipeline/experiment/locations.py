"""Makes the paths of an experiment absolute, before it is validated.

A path in a file is relative to the folder of that file, so that the file means the same wherever it is run from. A
path in a `--set` is relative to the folder in which it is typed, as any path of a command is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from patchsae.pipeline.core.config import Config
from patchsae.pipeline.experiment.kinds import KINDS
from patchsae.storage.errors import UserError


def make_absolute(raw: Mapping[str, Any], folder: Path, where: str) -> None:
    """Makes the paths in `raw` absolute in place: those that begin with `~`, and relative ones from `folder`.

    `where` names the file in errors. Raises UserError if a path leads nowhere from `folder`, but somewhere from
    the working directory, from which earlier versions read it.
    """
    for section, kinds in KINDS.items():
        entries = raw.get(section)
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            for field in _path_fields(entry, kinds):
                entry[field] = str(_absolute(entry[field], folder, where, f"{section}.{name}.{field}"))


def _path_fields(entry: Any, kinds: Mapping[str, type[Config]]) -> Iterator[str]:
    """The fields of an entry that hold a path. Where a `--set` gives the kind later, a field of any kind is one."""
    if not isinstance(entry, dict):
        return
    kind = kinds.get(str(entry.get("kind")))
    known = (
        kind.path_fields() if kind is not None else {f for one in kinds.values() for f in one.path_fields()}
    )
    for field in sorted(known & entry.keys()):
        if isinstance(entry[field], str) and entry[field] and "\0" not in entry[field]:
            yield field


def _absolute(text: str, folder: Path, where: str, field: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{where}: `{field}` is {text!r}, and no such user has a home folder here.") from None
    here, there = normalized(folder.absolute() / path), normalized(Path.cwd() / path)
    if here != there and not os.path.lexists(here) and os.path.lexists(there):
        raise UserError(
            f"{where}: `{field}` is {text!r}, which is relative to the folder of that file: {here} is not there, "
            f"but {there} is; write {os.path.relpath(there, folder.absolute())!r}, or the whole path."
        )
    return here


def normalized(path: Path) -> Path:
    """The path without `..`, unless a link on the way gives `..` another meaning."""
    without = Path(os.path.normpath(path))
    return without if os.path.realpath(without) == os.path.realpath(path) else path
