"""What an image of the shapes world really shows: the outlines of its objects, to be laid over a picture or a map."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageFilter

from patchsae.explorer import sources
from patchsae.explorer.content import Content
from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.pictures import row_of
from patchsae.explorer.view import View
from patchsae.pipeline.images.datasets.shapes import Shapes, ShapesConfig
from patchsae.pipeline.results.originals import Originals
from patchsae.pipeline.shapes.world import Scene
from patchsae.storage.errors import UserError

_SCALE = 8
_MAX_AGE = 86_400
# (width in pixels of the enlarged image, RGBA): a dark edge around a light line, to be seen on any colour.
_LINES = ((11, (0, 0, 0, 150)), (5, (255, 255, 255, 255)))


def truth(library: Library, arguments: Mapping[str, str]) -> Content:
    """PNG with alpha: the outlines of an image's objects. Raises Absent for images without ground truth."""
    view = library.view(arguments["view"])
    image = row_of(library, view, arguments["row"])
    of = sources.originals(library, view)
    scene = scene_of(of, of.row(image)["source"])
    if scene is None:
        raise Absent("Only images of the shapes world have a ground truth.")
    return Content(outlines(scene), "image/png", max_age=_MAX_AGE)


def has_truth(of: Originals) -> bool:
    """Whether the ground truth of the images is known."""
    return isinstance(of.config, ShapesConfig)


def knows_truth(library: Library, view: View) -> bool:
    """Whether the ground truth of a view's images is known; False too where nothing tells what they were read from."""
    try:
        return has_truth(sources.originals(library, view))
    except UserError:
        return False


def scene_of(of: Originals, source: str) -> Scene | None:
    """The scene that an image shows; None if its ground truth is not known."""
    return Shapes(of.config).scene(source) if isinstance(of.config, ShapesConfig) else None


def outlines(scene: Scene) -> bytes:
    """The outlines of the visible parts of a scene's objects as a PNG with alpha, 8 times as large as the image."""
    side = scene.image.shape[0] * _SCALE
    drawn = Image.new("RGBA", (side, side))
    edges = []
    for one in scene.objects:
        mask = Image.fromarray((one.mask * 255).astype(np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        inside = mask.point(lambda value: 255 if value > 127 else 0)
        # Pixels beside the outline; a filter of 3 pixels finds it on both of its sides.
        edges.append(
            np.asarray(inside.filter(ImageFilter.MaxFilter(3)))
            != np.asarray(inside.filter(ImageFilter.MinFilter(3)))
        )
    for width, colour in _LINES:
        for edge in edges:
            line = Image.fromarray(edge).convert("L").filter(ImageFilter.MaxFilter(width - 2))
            drawn.paste(Image.new("RGBA", drawn.size, colour), mask=line)
    out = io.BytesIO()
    drawn.save(out, "PNG")
    return out.getvalue()
