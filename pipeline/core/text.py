"""Text for error messages and tables: the nearest known word to a misspelt one, counts, sizes in bytes, numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from rich.filesize import decimal

_LISTED = 20


def nearest(word: str, known: Iterable[str], lister: str = "") -> str:
    """The end of an error message about an unknown word: `; did you mean X?`, or the list of known words.

    Of more than 20 known words the first are listed; `lister` is a command that lists all.
    """
    options = sorted(known)
    matches = difflib.get_close_matches(word, options, n=3, cutoff=0.5)
    if matches:
        return "; did you mean " + " or ".join(f"`{match}`" for match in matches) + "?"
    shown = ", ".join(f"`{option}`" for option in options[:_LISTED]) or "none"
    n_more = len(options) - _LISTED
    more = f", and {n_more:,} more" + (f" (`{lister}` lists them)" if lister else "") if n_more > 0 else ""
    return f"; there is {shown}{more}."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type if it has no message."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))[:200]


def count(n: int, one: str, several: str | None = None) -> str:
    """`1 image`, `1,234 images`; `several` is the plural if that is not `one` with an s."""
    return f"{n:,} {one if n == 1 else several or f'{one}s'}"


def size(n_bytes: int | None) -> str:
    """A number of bytes with a decimal unit (kB, MB, ...); `?` for None."""
    return "?" if n_bytes is None else decimal(n_bytes)


def duration(seconds: float | None) -> str:
    """Seconds as text with two digits, such as `0.3 s`, `12 s`, `4 min`, `2.5 h`; `?` for None."""
    if seconds is None:
        return "?"
    for unit, least in (("d", 86_400 * 2), ("h", 5_400), ("min", 90)):
        if seconds >= least:
            amount = seconds / {"d": 86_400, "h": 3_600, "min": 60}[unit]
            return f"{amount:.1f} {unit}" if amount < 9.95 else f"{amount:,.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def number(value: float | int | str | None) -> str:
    """A value of a summary as text: `1,234` for counts, four digits for fractions, 16 digits of a digest."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value if len(value) <= 40 else f"{value[:16]}..."
