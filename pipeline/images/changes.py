"""Which images changed since they were indexed, for the plan, which says why they are to be looked at again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import stat_result

from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError

_SHOWN = 2


def changed_images(config: DatasetConfig, index: Artifact) -> str | None:
    """The images that were changed, added or removed since `index` was made: how many, and names.

    Changed images are those whose files have later times; they are not read. None if no difference is found.
    """
    try:
        now = {record.source: (record.label, record.split) for record in config.build().records()}
        rows = index.scan("images").select("source", "label", "split").collect().iter_rows()
        before = {source: (label, split) for source, label, split in rows}
        corrupt = set(index.scan("corrupt_images").collect()["source"])
    except UserError:
        return None
    known = before.keys() | corrupt
    since = float(index.manifest.provenance.get("started", 0.0))
    there = [source for source in now if source in known]
    # A file that was copied with its times has an earlier one, but the system notes when its entry was changed.
    changed = _later(config, there, since, lambda found: found.st_mtime) or _later(
        config, there, since, lambda found: found.st_ctime
    )
    regrouped = [s for s in there if s in before and now[s] != before[s] and s not in changed]
    told = {
        "changed": changed,
        "added": [source for source in now if source not in known],
        "removed": sorted(known - now.keys()),
        "in another class or split": regrouped,
    }
    return "; ".join(_told(what, sources) for what, sources in told.items() if sources) or None


def _later(
    config: DatasetConfig, sources: Sequence[str], since: float, time: Callable[[stat_result], float]
) -> list[str]:
    """The sources whose files have a time after `since`."""
    found = []
    for source in sources:
        path = config.file_of(source)
        try:
            if path is not None and time(path.stat()) > since:
                found.append(source)
        except OSError:
            found.append(source)
    return found


def _told(what: str, sources: Sequence[str]) -> str:
    shown = ", ".join(sources[:_SHOWN]) + (", ..." if len(sources) > _SHOWN else "")
    return f"{len(sources):,} {'image' if len(sources) == 1 else 'images'} {what} ({shown})"
