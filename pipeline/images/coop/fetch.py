"""Fetches data sets from a mirror on Hugging Face, for `patchsae data --fetch`.

A data set's folder is complete or not there: it is unpacked beside, checked, and renamed. What a killed process has
fetched is gone on with.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.text import first_line
from patchsae.pipeline.images.coop.archive import Unsound, unpack
from patchsae.pipeline.images.coop.dataset import Coop
from patchsae.pipeline.images.coop.facts import FACTS, Facts, Name
from patchsae.pipeline.images.coop.found import belongs, look
from patchsae.storage.atomic import explaining_full_disk, remove, sync_file
from patchsae.storage.errors import UserError
from patchsae.storage.locks import lock

MIRROR = "zhengli97/prompt_learning_dataset"
"""A repository that has all of the data sets but ImageNet, with their split files, as one zip file each."""
_REVISION = "ceb3112337fb6e1bf71534e355ca5569b63f19a6"
_ROOM = ".patchsae-fetch"


def fetch(name: Name, root: Path, reporter: Reporter, tell: Callable[[str], None] = lambda _: None) -> None:
    """Fetches a data set into `root`, unless it is there. `tell` gets sentences on what is going on.

    Raises UserError if it cannot be fetched, if what was fetched is not what it should be, or if its folder is there
    and incomplete, in which case nothing is changed.
    """
    facts, target = FACTS[name], root / FACTS[name].folder
    if not facts.archive:
        raise UserError(f"{name}: is not in the mirror; get it from {facts.origin} ({facts.remark}).")
    room = root / _ROOM / name
    with (
        explaining_full_disk(root),
        lock(
            root / _ROOM / f"{name}.lock",
            lambda: tell(f"{name}: waiting for another process that fetches it"),
        ),
    ):
        if os.path.lexists(target):
            found = look(name, root)
            if found.state == "found":
                remove(room)
                return
            raise UserError(
                f"{target}: is there, but not complete; move it away to fetch it ({found.problem.rstrip('.')})."
            )
        tell(f"{name}: fetching {facts.archive} from {MIRROR}")
        archive = _download(facts.archive, room)
        staged = room / "unpacked"
        remove(staged)
        _unpack(name, facts, archive, staged, reporter)
        (staged / facts.folder).rename(target)
        sync_file(root)
        remove(room)


def _unpack(name: Name, facts: Facts, archive: Path, staged: Path, reporter: Reporter) -> None:
    """Makes a complete data set in the folder `staged`."""
    try:
        marker = facts.split_file or belongs(facts)[0].rstrip("/")
        unpack(archive, staged / facts.folder, marker, reporter)
    except Unsound:
        remove(staged)
        raise
    try:
        Coop(name, staged).fingerprint()
    except UserError as error:
        raise UserError(
            f"{archive}: is not the data set that was expected, and is kept to be unpacked by hand ({str(error).rstrip('.')})."
        ) from error
    # Files are on the disk before their folder has its name.
    os.sync()


def _download(file: str, room: Path) -> Path:
    """The file of the mirror, in the folder `room`, where it may be already, as a whole or in part."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ModuleNotFoundError:
        raise UserError(
            "--fetch: needs the package huggingface_hub, which is not installed; install it, or get the data by hand: "
            "`patchsae data NAME` says where from."
        ) from None
    # What it raises without a connection depends on its version and on the library that it loads files with.
    known: tuple[Any, ...] = (OSError, errors.EntryNotFoundError, *errors.HfHubHTTPError.__bases__)
    try:
        found = huggingface_hub.hf_hub_download(MIRROR, file, revision=_REVISION, local_dir=room)
    except known as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{file}: could not be fetched from {MIRROR} ({first_line(error).partition('. ')[0]}); check the connection and run the same "
            "command again, what has been fetched is kept."
        ) from error
    return Path(found)
