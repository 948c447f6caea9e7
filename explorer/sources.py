"""Where the pictures of a view come from, and which part of them its backbone sees. Nothing here needs torch."""

from __future__ import annotations

from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.view import View
from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.results.framing import framing_of
from patchsae.pipeline.results.originals import Originals
from patchsae.pipeline.results.places import Place
from patchsae.storage.errors import UserError
from patchsae.storage.tokens import layout_of

_BYTES = 10_000


def recorded(view: View) -> Place:
    """The view in the newest record that holds the whole experiment, or else in the newest one.

    Raises Absent if no record has it.
    """
    if view.place is None:
        raise Absent(
            f"view {view.key}: no record of an experiment is left that says where its images and weights are; run the "
            "experiment once more (nothing is computed again)."
        )
    return view.place


def originals(library: Library, view: View) -> Originals:
    """The images of a view. Raises Absent if their index is no longer in the store."""
    if view.images is None:
        raise Absent(
            f"view {view.key}: the table of its images is no longer in the store; run its experiment again."
        )
    index, place = view.images, recorded(view) if view.places else None
    key = ("originals", index.manifest.digest, place and (place.record.content, place.node.names["dataset"]))
    return library.cache.get(key, lambda: Originals(index, place), lambda _: _BYTES)


def why_no_pictures(library: Library, view: View) -> str | None:
    """Why no picture of a view can be shown, as a sentence; None if pictures may be there."""
    try:
        return originals(library, view).why_not
    except UserError as error:
        return str(error)


def framing(library: Library, view: View) -> Framing | None:
    """How the view's backbone takes a picture; None if no record says it."""

    def find() -> Framing | None:
        try:
            return framing_of(recorded(view))
        except UserError:
            return None

    places = tuple((view.snapshot.records[one.experiment].content, one.address) for one in view.places)
    return library.cache.get(("framing", view.key, places), find, lambda _: _BYTES)


def grid(view: View) -> tuple[int, int] | None:
    """(rows, columns) of a view's patches; None if its activations are not in the store, or are damaged."""
    found = view.activations
    if found is None:
        return None
    try:
        return layout_of(found).grid
    except UserError:
        return None
