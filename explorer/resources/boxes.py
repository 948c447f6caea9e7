"""`box`: the part of a picture that a backbone sees."""

from __future__ import annotations

from patchsae.explorer import sources
from patchsae.explorer.library import Library
from patchsae.explorer.view import View


def box(library: Library, view: View, width: int | None, height: int | None) -> list[float] | None:
    """[x0, y0, x1, y1] in shares of the width and height of a picture, as `Framing.box` says.

    None if its size, or the preprocessing of the backbone, is not known.
    """
    found, grid = sources.framing(library, view), sources.grid(view)
    if not width or not height or found is None or grid is None:
        return None
    return list(found.box(width, height, grid))
