"""Image files: which ones a folder has, how one is read, and how it is decoded.

The files may come from anybody. What cannot be read raises OSError with a sentence that is the same in every
run, since `index` writes it into its table of corrupt images.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""Pillow's names for the formats of `SUFFIXES`. Its decoder of JPEG also reads MPO, in which phones and
cameras store several JPEG images. Pillow knows over 40 formats; most of their decoders are little used."""
MAX_BYTES = 2**30
MAX_PIXELS = 100_000_000
"""Pixels of the largest image that is decoded. A file of 0.3 MB can hold 178 million pixels, which took 54
seconds and 2.3 GB."""
MAX_ASPECT = 1000
"""How many times longer than its shorter side an image may be. Preprocessing scales the shorter side to that
of the backbone, so that an image of 1 x 20,000 pixels would get a billion pixels."""

# Pillow warns of images from 89 million pixels on. The bound above takes the place of that.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_ADDRESS = re.compile(r" at 0x[0-9a-f]+", re.IGNORECASE)


def image_files(folder: Path) -> list[Path]:
    """Every file below a folder whose suffix is that of an image, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def read_file(path: Path) -> bytes:
    """The content of a regular file of at most `MAX_BYTES`. Raises OSError for anything else."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("is no regular file")
    if found.st_size > MAX_BYTES:
        raise OSError(f"has {found.st_size:,} bytes, and at most {MAX_BYTES:,} are read")
    # A named pipe may take the place of the file after it was looked at. Opened so, it has no bytes; opened
    # plainly, it waits for a writer forever.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        return file.read()


def decode_rgb(data: bytes) -> Image.Image:
    """The first frame of an image file as RGB; 16-bit grey becomes 8-bit.

    Raises OSError if `data` is not in one of `FORMATS`, is larger than the bounds above, or is broken. Raises
    MemoryError if the machine is too small, which says nothing about the image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size)
            image.load()
            return _as_rgb(image)
    except UnidentifiedImageError:
        raise OSError(f"is no image of the formats that are read ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise OSError(_too_large()) from None
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's decoders raise whatever a broken file leads them to: OSError, SyntaxError, ValueError,
        # KeyError, struct.error, NotImplementedError, and others from version to version.
        raise OSError(reason(error)) from error


def reason(error: Exception) -> str:
    """An error's message as one line, without addresses in memory, which differ between two runs."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = _ADDRESS.sub("", " ".join(text.split()))[:300]
    if isinstance(error, OSError | SyntaxError | ValueError) and text:
        return text
    # The message of a KeyError, say, is the key alone.
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise OSError(_too_large())
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise OSError(
            f"has {width:,} x {height:,} pixels, and one side is over {MAX_ASPECT:,} times the other"
        )


def _too_large() -> str:
    return f"has more than {MAX_PIXELS:,} pixels, the most that are decoded"


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.float32)
        return Image.fromarray((grey / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P":
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
