"""Which images changed since they were indexed, for the plan, which says why they are to be looked at again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import stat_result

import polars as pl

from patchsae.pipeline.core.text import count
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.files import names
from patchsae.pipeline.images.tables import LATER_COLUMNS
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
    found = [_told(what, sources) for what, sources in told.items() if sources]
    place, place_before = (
        config.location().get("root"),
        index.manifest.provenance.get("source", {}).get("root"),
    )
    if place != place_before and place_before is not None:
        found.append(f"images are in {place}, and were in {place_before}")
    return "; ".join(found) or None


def changed_content(before: Artifact, now: Artifact) -> str | None:
    """The images in which two indexes differ: how many, and names. None if no difference is found.

    Indexes of versions up to 0.1 say of no image that it was treated, since they used pixels as they are stored.
    """
    try:
        old, new = (_images_of(index) for index in (before, now))
    except UserError:
        return None
    both = old.keys() & new.keys()
    same = [source for source in both if old[source][0] == new[source][0]]
    treated = [source for source in same if old[source][1] != new[source][1]]
    told = {
        "turned by their EXIF orientation": _with(treated, new, "orientation"),
        "put on another background": _with(treated, new, "background"),
        "read as they are stored": [source for source in treated if not new[source][1]],
        "changed": [source for source in both if old[source][0] != new[source][0]],
        "in another class or split": [source for source in both if old[source][2:] != new[source][2:]],
        "added": list(new.keys() - old.keys()),
        "removed": list(old.keys() - new.keys()),
    }
    return "; ".join(_told(what, sorted(sources)) for what, sources in told.items() if sources) or None


def _with(sources: Sequence[str], images: Mapping[str, tuple[str, ...]], treatment: str) -> list[str]:
    return [source for source in sources if treatment in images[source][1]]


def _images_of(index: Artifact) -> dict[str, tuple[str, ...]]:
    """Source -> digest, treatment, class and split of every image of an index."""
    images = index.scan("images").collect()
    later = [pl.lit(v).alias(column) for column, v in LATER_COLUMNS.items() if column not in images.columns]
    images = images.with_columns(later)
    rows = images.select("source", "digest", "treatment", "class_name", "split").iter_rows()
    return {source: tuple(others) for source, *others in rows}


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
    return f"{count(len(sources), 'image', 'images')} {what} ({names(sources, _SHOWN)})"
