"""Pictures as WebP: those of a dataset, from where its images are, and uploaded ones.

Images are read and decoded as the pipeline does, turned upright, on their background, and within its bounds. Which
image that is, a view and a row number say, so no path from a request reaches the disk.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

from PIL import Image

from patchsae.explorer import sources
from patchsae.explorer.content import Content
from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.view import View
from patchsae.pipeline.images.originals import NoOriginal
from patchsae.pipeline.images.thumbnails import THUMBNAILS, Thumbnails
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError

SIZES = (96, 224, 640)
_QUALITY = {96: 80, 224: 84, 640: 88}
_MAX_AGE = 86_400
# What is shown in place of a picture that is not there: a plain tile. Why it is not there, `view` says.
_TILE = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><path fill="#8888" d="M0 0h8v8H0z"/></svg>'
)


def picture(library: Library, arguments: Mapping[str, str]) -> Content:
    """The picture of a row. If it is gone or has changed, the header `X-Picture` says so, and the picture is the small
    one that the index has, or else a plain tile.

    Raises Absent if there is no such view or row.
    """
    view, size = library.view(arguments["view"]), size_of(arguments)
    image = row_of(library, view, arguments["row"])
    try:
        return Content(webp_of(library, view, image, size), "image/webp", max_age=_MAX_AGE)
    except NoOriginal as error:
        return _instead(library, view, image, error.what)
    except UserError:
        return _instead(library, view, image, "gone")


def uploaded(library: Library, arguments: Mapping[str, str]) -> Content:
    """The picture of an upload. Raises Absent if it is not kept any more."""
    size = size_of(arguments)
    image = library.uploads.image(arguments["upload"])
    return Content(encoded(image, size), "image/webp", max_age=_MAX_AGE)


def _instead(library: Library, view: View, image: int, what: str) -> Content:
    """What is shown of an image whose original is not there."""
    header = {"X-Picture": what}
    small = None if view.images is None else _thumbnail(library, view.images, image)
    return Content(small, "image/webp", header) if small else Content(_TILE, "image/svg+xml", header)


def size_of(arguments: Mapping[str, str]) -> int:
    """The longest side that is asked for, one of `SIZES`. Raises UserError for any other."""
    text = arguments.get("size", str(SIZES[0]))
    if text not in map(str, SIZES):
        raise UserError(f"size={text[:100]}: pictures have the sizes {', '.join(map(str, SIZES))}.")
    return int(text)


def row_of(library: Library, view: View, text: str) -> int:
    """The row that an address names. Raises Absent if the view's images have no such row."""
    n_images = len(library.images(view))
    if text.isascii() and text.isdecimal() and len(text) < 12 and int(text) < n_images:
        return int(text)
    raise Absent(f"image {text[:100]}: the dataset has the rows 0 to {n_images - 1:,}.")


def webp_of(library: Library, view: View, image: int, size: int) -> bytes:
    """The WebP of an image whose longest side is `size` pixels at most.

    Raises NoOriginal if the image is gone or has changed, and there is no thumbnail of that size either.
    """
    of = sources.originals(library, view)
    key = ("picture", of.index.manifest.digest, of.folder, image, size)

    def make() -> bytes:
        stored = _thumbnail(library, of.index, image) if size == SIZES[0] else None
        return stored or encoded(of.image(image), size)

    return library.cache.get(key, make, len)


def has_thumbnails(view: View) -> bool:
    """Whether the index has a small picture of every image."""
    return view.images is not None and bool(view.images.table_files(THUMBNAILS.name))


def _thumbnail(library: Library, index: Artifact, image: int) -> bytes | None:
    """The small picture that the index has of an image; None if it was told to keep none, or the table is damaged."""
    try:
        held = library.cache.get(
            ("thumbnails", index.manifest.digest), lambda: Thumbnails(index), lambda one: one.n_bytes
        )
        return held.read([image]).get(image)
    except (UserError, OSError):
        return None


def encoded(image: Image.Image, size: int) -> bytes:
    """An RGB image as WebP, made smaller so that its longest side is `size` pixels at most."""
    small = image.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=_QUALITY[size], method=2)
    return out.getvalue()
