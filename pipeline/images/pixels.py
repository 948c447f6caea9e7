"""From the bytes of an image file to RGB pixels. Everything that looks at pixels reads them here.

The files may come from anybody. What cannot be read raises OSError with a sentence that is the same in every
run, since `index` writes it into its table of corrupt images. docs/images.md says what each kind of file becomes.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

from patchsae.pipeline.images.files import FORMATS, reason

MAX_PIXELS = 100_000_000
"""Pixels of the largest image that is decoded. A file of 0.3 MB can hold 178 million pixels, which took 54
seconds and 2.3 GB."""
MAX_ASPECT = 1000
"""How many times longer than its shorter side an image may be. Preprocessing scales the shorter side to that
of the backbone, so that an image of 1 x 20,000 pixels would get a billion pixels."""

# Pillow warns of images from 89 million pixels on. The bound above takes the place of that.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Its warnings of broken metadata name no file. An image that cannot be read is told of in the index.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what brings the stored pixels upright. 1 is upright."""
_SIDEWAYS = (5, 6, 7, 8)
_BROKEN_EXIF = (OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, struct.error)
"""What Pillow raises for EXIF data that are broken."""
_LARGEST_16_BIT = 65535
# A slower method makes files of 96 pixels 7 % smaller, in twice the time.
_WEBP_QUALITY, _WEBP_METHOD = 75, 2
T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """How pixels are read where a file leaves a choice.

    `orientation`: turn the image as its EXIF tag says, or ignore the tag. `background`: `white`, `black` or
    `#rrggbb`, on which transparent pixels are put; `none` drops the alpha channel.
    """

    orientation: Literal["exif", "ignore"] = "exif"
    background: str = "white"


@dataclass(frozen=True)
class Facts:
    """What `index` notes of an image.

    `width` and `height` are those of the image as it is read, so after it was turned. `treatment` says what was
    done to the stored pixels: `orientation 6`, `background white`, both with a comma, or nothing. It is part of
    the identity of the images, since the same bytes may be read in two ways.
    """

    width: int
    height: int
    treatment: str = ""


@dataclass(frozen=True)
class Thumbnail:
    """A small picture of an image, and its file."""

    width: int
    height: int
    webp: bytes


def decode_rgb(data: bytes, reading: Reading = Reading(), max_pixels: int | None = None) -> Image.Image:
    """The first frame of an image file as 8-bit RGB.

    Raises OSError if `data` is not in one of `FORMATS`, is larger than the bounds above, or is broken. Raises
    MemoryError if the machine is too small, which says nothing about the image.
    """
    return _opened(data, lambda image: as_rgb(image, reading), max_pixels)


def inspect(data: bytes, reading: Reading = Reading()) -> Facts:
    """The facts of an image that `decode_rgb` can read. Raises what `decode_rgb` raises for any other.

    A JPEG is decoded at an eighth of its size, in under a third of the time. Its entropy-coded data are read to
    the end all the same, and a JPEG that cannot be decoded is one in which they, or the markers, are broken.
    """
    return _smallest_first(data, lambda image, least: _facts(image, reading, least), 1)


def inspect_small(data: bytes, reading: Reading, side: int) -> tuple[Facts, Thumbnail]:
    """What `inspect` finds, and the image at a size of at most `side` x `side` pixels, from the same decoding.

    A JPEG is decoded at the smallest size that is not smaller than the thumbnail.
    """

    def look(image: Image.Image, least: int | None) -> tuple[Facts, Thumbnail]:
        facts = _facts(image, reading, least)
        return facts, _thumbnail(as_rgb(image, reading), facts, side)

    return _smallest_first(data, look, side)


def _smallest_first(data: bytes, look: Callable[[Image.Image, int | None], T], least: int) -> T:
    """What `look` makes of an image, of which JPEGs are decoded at a size of about `least` pixels or more."""
    try:
        return _opened(data, lambda image: look(image, least))
    except OSError:
        # The verdict, and its words, are those of the whole image.
        return _opened(data, lambda image: look(image, None))


def as_rgb(image: Image.Image, reading: Reading = Reading()) -> Image.Image:
    """An image of Pillow as 8-bit RGB, turned and put on a background as `reading` says.

    Raises OSError if its pixels are numbers without a defined black and white.
    """
    image.load()
    orientation = _orientation(image, reading)
    image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if reading.background != "none":
            colour = (*ImageColor.getrgb(reading.background)[:3], 255)
            image = Image.alpha_composite(Image.new("RGBA", image.size, colour), image)
    image = image.convert("RGB")
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _thumbnail(image: Image.Image, facts: Facts, side: int) -> Thumbnail:
    """The small picture of an RGB image, which may have been decoded at a smaller size than that of its facts."""
    scale = min(1.0, side / max(facts.width, facts.height))
    width, height = (max(1, round(scale * length)) for length in (facts.width, facts.height))
    small = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=_WEBP_QUALITY, method=_WEBP_METHOD)
    return Thumbnail(width, height, file.getvalue())


def _facts(image: Image.Image, reading: Reading, least: int | None) -> Facts:
    """The facts of an image, which is loaded. A JPEG is loaded at the smallest size, of an eighth or more, whose longest
    side is at least `least`; whole if that is None."""
    size = image.size
    if least is not None and image.format in ("JPEG", "MPO"):
        image.draft(None, _shrunk(size, least))
        image.load()
    else:
        image.load()
        size = image.size  # Pillow turns a TIFF when it loads it.
    orientation = _orientation(image, reading)
    treatment = [f"orientation {orientation}"] if orientation in _TURNS else []
    if _shows_background(_eight_bits(image), reading):
        treatment.append(f"background {reading.background}")
    width, height = reversed(size) if orientation in _SIDEWAYS else size
    return Facts(width, height, ", ".join(treatment))


def _shrunk(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """The size in the same proportions whose longest side is that long, rounded up."""
    width, height = (-(-length * longest // max(size)) for length in size)
    return width, height


def _shows_background(image: Image.Image, reading: Reading) -> bool:
    """Whether a pixel of the image is not opaque, so that the background shows."""
    if reading.background == "none" or not image.has_transparency_data:
        return False
    lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
    return lowest != 255


def _opened(data: bytes, use: Callable[[Image.Image], T], max_pixels: int | None = None) -> T:
    """What `use` makes of an image file. Raises OSError if it cannot be read, as `decode_rgb` says."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, max_pixels or MAX_PIXELS)
            return use(image)
    except UnidentifiedImageError:
        raise OSError(f"is no image of the formats that are read ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise OSError(_too_large(max_pixels or MAX_PIXELS)) from None
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise whatever a broken file leads them to: OSError, SyntaxError, ValueError,
        # KeyError, struct.error, NotImplementedError, and others from version to version.
        raise OSError(reason(error)) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise OSError(_too_large(max_pixels))
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise OSError(
            f"has {width:,} x {height:,} pixels, and one side is over {MAX_ASPECT:,} times the other"
        )


def _too_large(max_pixels: int) -> str:
    return f"has more than {max_pixels:,} pixels, the most that are decoded"


def _orientation(image: Image.Image, reading: Reading) -> int | None:
    """The image's EXIF orientation; None if it has none, or one that cannot be read."""
    if reading.orientation == "ignore":
        return None
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except _BROKEN_EXIF:
        return None  # The pixels are sound, and are shown as they are stored.
    return found if isinstance(found, int) else None


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image, or 16-bit grey as 8-bit grey: 0 becomes 0, and 65,535 becomes 255.

    Pillow reads colours of 16 bits as 8 itself. Raises OSError for pixels without a defined black and white.
    """
    if image.mode == "F":
        raise OSError("has floating-point pixels, which have no defined white; save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).astype(np.int64)
    if grey.size and (grey.min() < 0 or grey.max() > _LARGEST_16_BIT):
        raise OSError("has grey values outside 0 to 65,535; save it with 8 or 16 bits")
    return Image.fromarray((grey // 257).astype(np.uint8))
