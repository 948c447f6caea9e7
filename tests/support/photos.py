"""What cameras write beside the pixels."""

from __future__ import annotations

from PIL import ExifTags, Image


def exif_of(orientation: object) -> bytes:
    """EXIF data with an orientation, for `Image.save`."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()
