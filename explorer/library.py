"""`Library`: a store that is open for reading, what is in it now, and what of it is kept in memory.

It writes nothing to the store and holds no lock: a run goes on as if nobody looked. What a run adds is seen at the
next request.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import polars as pl

from patchsae.explorer.cache import Cache
from patchsae.explorer.errors import Absent
from patchsae.explorer.queries import Queries
from patchsae.explorer.snapshot import Fingerprint, Snapshot
from patchsae.explorer.uploads import Uploads
from patchsae.explorer.view import SAE_STAGES, View, labels
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import Damaged
from patchsae.storage.records import current_of
from patchsae.storage.store import Store

_CACHE_BYTES = 850_000_000
_DIGITS = 4


class Library:
    """A store for the resources. Several threads may use it."""

    def __init__(self, store: Store, mode: str = "server", cache_bytes: int = _CACHE_BYTES) -> None:
        self.store = store
        self.mode = mode
        self.version = version("patchsae")
        self.cache = Cache(cache_bytes)
        """Tables, and heavy objects such as backbones and SAEs. Its keys begin with what the object is."""
        self.queries = Queries(store.root)
        self.uploads = Uploads()
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()

    def snapshot(self) -> Snapshot:
        """What the store holds now."""
        at = Fingerprint.of(self.store)
        with self._lock:
            if self._snapshot is None or self._snapshot.at != at:
                self._snapshot = Snapshot.take(self.store, at, self._snapshot)
            return self._snapshot

    def current(self, snapshot: Snapshot) -> set[str]:
        """The names of the records that are not of an earlier version of an experiment."""
        return set(current_of(snapshot.records))

    def views(self) -> list[View]:
        """Every view, in the order of its experiments and names."""
        snapshot = self.snapshot()
        found = [View(snapshot, artifact) for artifact in snapshot.committed("statistics")]
        return sorted(found, key=lambda view: (view.place is None, _order(view)))

    def heads(self) -> list[dict[str, Any]]:
        """VIEWHEAD of every view."""
        views = self.views()
        known_as = labels(views)
        return [{**view.head(), "label": known_as[view.key]} for view in views]

    def head(self, view: View) -> dict[str, Any]:
        """VIEWHEAD of a view."""
        return next(one for one in self.heads() if one["key"] == view.key)

    def view(self, key: str) -> View:
        """The view with this id. Raises Absent if there is none, and Damaged if its statistics cannot be used."""
        return View(self.snapshot(), self.artifact(key, ["statistics"], "view"))

    def artifact(self, key: str, stages: Sequence[str], what: str) -> Artifact:
        """The artifact of one of the stages with this id. Raises Absent or Damaged, which call it `what`."""
        snapshot = self.snapshot()
        for stage in stages:
            held = snapshot.find(stage, key) if len(key) >= _DIGITS else None
            if held is None:
                continue
            if held.fault is not None:
                raise Damaged(held.fault)
            if held.state == "committed":
                return held.artifact
            raise Absent(f"{what} {key}: is not finished yet; look again when its run has ended.")
        raise Absent(
            f"{what} {key}: is not in this store; it may have been deleted since. `#/` lists what there is."
        )

    def sae(self, key: str) -> Artifact:
        """The SAE with this id. Raises as `view` does."""
        return self.artifact(key, SAE_STAGES, "SAE")

    def table(self, artifact: Artifact, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """A table of an artifact, or some of its columns, kept in memory. Raises Absent if it has no such table."""
        if not artifact.table_files(name):
            raise Absent(f"{artifact.stage} {artifact.key[:16]}: has no table `{name}`.")

        def read() -> pl.DataFrame:
            scanned = artifact.scan(name)
            known = scanned.collect_schema().names()
            wanted = [one for one in known if one != "artifact"] if columns is None else columns
            return scanned.select(one for one in wanted if one in known).collect()

        key = ("table", artifact.manifest.digest, name, None if columns is None else tuple(columns))
        return self.cache.get(key, read, lambda frame: int(frame.estimated_size()))

    def images(self, view: View) -> pl.DataFrame:
        """The columns of the table `images` that pages show, row i being image i. Raises Absent if it is not there."""
        if view.images is None:
            raise Absent(
                f"view {view.key}: the table of its images is no longer in the store; run its experiment again."
            )
        columns = ("image", "source", "label", "split", "width", "height")
        return self.table(view.images, "images", columns)

    def class_names(self, view: View) -> list[str]:
        """The names of the view's classes in the order of their ids; empty if the index is not in the store."""
        if view.images is None:
            return []
        names: list[str] = self.table(view.images, "classes", ("class", "class_name"))["class_name"].to_list()
        return names


def _order(view: View) -> tuple[str, ...]:
    head = view.head()
    return tuple(str(head[name] or "") for name in ("experiment", "dataset", "sae", "backbone", "evaluation"))
