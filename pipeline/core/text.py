"""Text for error messages and tables: the nearest known word to a misspelt one, sizes in bytes, numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from rich.filesize import decimal


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown word: `; did you mean X?`, or the list of known words."""
    options = sorted(known)
    matches = difflib.get_close_matches(word, options, n=3, cutoff=0.5)
    if matches:
        return "; did you mean " + " or ".join(f"`{match}`" for match in matches) + "?"
    shown = ", ".join(f"`{option}`" for option in options[:20]) or "none"
    return f"; there is {shown}."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type if it has no message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))[:200]


def size(n_bytes: int | None) -> str:
    """A number of bytes with a decimal unit (kB, MB, ...); `?` for None."""
    return "?" if n_bytes is None else decimal(n_bytes)


def number(value: float | int | str | None) -> str:
    """A value of a summary as text: `1,234` for counts, four digits for fractions, 16 digits of a digest."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if len(value) <= 40 else f"{value[:16]}..."
