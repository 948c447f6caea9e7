"""Reads the small files that data sets bring beside their images."""

from __future__ import annotations

from pathlib import Path

from patchsae.pipeline.images.files import read_file, reason
from patchsae.storage.errors import UserError


def read_bytes(path: Path) -> bytes:
    """The content of a file. Raises UserError if it is not there or cannot be read."""
    try:
        return read_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; `patchsae data` says where to get it.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)}).") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without empty ones. Raises UserError as `read_bytes`, and for other encodings."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text in UTF-8; get the file again.") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
