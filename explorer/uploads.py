"""`Uploads`: images that a user gave, kept in memory until others take their place. None is written to the disk."""

from __future__ import annotations

import threading
from collections import OrderedDict

from PIL import Image

from patchsae.explorer.errors import Absent
from patchsae.pipeline.images.files import reason
from patchsae.pipeline.images.pixels import Reading, decode_rgb
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_bytes

MAX_BYTES = 40_000_000
"""Bytes of the largest image that is taken."""
MAX_PIXELS = 50_000_000
"""Pixels of the largest image that is taken; decoded they are 150 MB."""
_KEPT_BYTES = 120_000_000
_DIGITS = 16


class Uploads:
    """The images that were uploaded last, as the bytes of their files. Several threads may use it."""

    def __init__(self, max_bytes: int = _KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, data: bytes) -> str:
        """Keeps an image and returns its id, which is a digest of it. Raises UserError if it is none, or too large."""
        if not data:
            raise UserError("upload: has no bytes; send the content of an image file.")
        if len(data) > MAX_BYTES:
            raise UserError(
                f"upload: has {len(data):,} bytes, and at most {MAX_BYTES:,} are taken; send a smaller image."
            )
        _decoded(data, Reading())
        name = digest_bytes(data)[:_DIGITS]
        with self._lock:
            self._kept[name] = data
            self._kept.move_to_end(name)
            while sum(map(len, self._kept.values())) > self._max_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return name

    def image(self, name: str, reading: Reading = Reading()) -> Image.Image:  # noqa: B008 (frozen)
        """The RGB image with this id. Raises Absent if it is not kept, or not kept any more."""
        with self._lock:
            data = self._kept.get(name)
            if data is None:
                raise Absent(
                    f"upload {name[:100]}: this server does not have it (any more); upload it again."
                )
            self._kept.move_to_end(name)
        return _decoded(data, reading)


def _decoded(data: bytes, reading: Reading) -> Image.Image:
    try:
        return decode_rgb(data, reading, MAX_PIXELS)
    except OSError as error:
        raise UserError(
            f"upload: cannot be shown: it {_told(error)}; send a picture such as a JPEG."
        ) from None
    except MemoryError:
        raise UserError("upload: needs more memory than is free; send a smaller image.") from None


def _told(error: OSError) -> str:
    text = reason(error)
    return text if text.startswith(("is ", "has ")) else f"is broken ({text})"
