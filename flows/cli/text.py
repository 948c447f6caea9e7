"""`table` and `paragraph`, with which the commands print to a terminal or a file."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_OF_A_FILE = 10_000
_LONGEST_RULE_OF_A_FILE = 120
_BETWEEN_COLUMNS = 3
_LEAST_OF_THE_LAST = 30
_LEAST_OF_THE_FIRST = 16


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A table as text, one line per row. Columns named in `right` are right-aligned.

    On a terminal the last column, if its cells are too long, continues on the next line. Where it would be left
    with less than 30 places, its cells stand below their rows.
    """
    others = sum(_widths(header[:-1], rows)) + _BETWEEN_COLUMNS * (len(header) - 1)
    last = max((cell_len(row[-1]) for row in rows), default=0)
    left = _width() - others
    if last > left < _LEAST_OF_THE_LAST and header[-1] not in right:
        return _stacked(header, rows, right)
    return _rendered(header, rows, right, _width())


def _widths(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of the longest cell of each column of `header`, which are the first of each row."""
    return [max(cell_len(line[i]) for line in (header, *rows)) for i in range(len(header))]


def _rendered(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str], width: int) -> str:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=any(header))
    fits = sum(_widths(header[:-1], rows)) + _BETWEEN_COLUMNS * (len(header) - 1) < width
    for i, name in enumerate(header):
        shown.add_column(
            Text(name),
            justify="right" if name in right else "left",
            overflow="fold",
            no_wrap=fits and i < len(header) - 1,
        )
    for row in rows:
        shown.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.rstrip() for line in text.rstrip("\n").split("\n")]
    if width == _WIDTH_OF_A_FILE:
        # One long cell would make the rule below the header as long as itself, which is lines of dashes in a pager.
        lines = [line[:_LONGEST_RULE_OF_A_FILE] if line and not line.strip("─") else line for line in lines]
    return "\n".join(lines)


def _stacked(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> str:
    """The table with the last cell of each row below the others, whose first continues on the next line."""
    width = _width()
    middle = sum(_widths(header[:-1], rows)[1:]) + _BETWEEN_COLUMNS * (len(header) - 2)
    room = max(_LEAST_OF_THE_FIRST, width - middle)
    firsts = [textwrap.wrap(row[0], room) or [""] for row in rows]
    lines = _rendered(
        header[:-1],
        [
            (part, *(row[1:-1] if i == 0 else [""] * (len(header) - 2)))
            for row, parts in zip(rows, firsts, strict=True)
            for i, part in enumerate(parts)
        ],
        right,
        _WIDTH_OF_A_FILE,
    ).split("\n")
    n_of_header = len(lines) - sum(map(len, firsts))
    text, rest = lines[:n_of_header], lines[n_of_header:]
    for row, parts in zip(rows, firsts, strict=True):
        text += rest[: len(parts)]
        text += textwrap.wrap(row[-1], width, initial_indent="    ", subsequent_indent="    ")
        rest = rest[len(parts) :]
    return "\n".join(text)


def _width() -> int:
    return Console(file=sys.stdout).width if sys.stdout.isatty() else _WIDTH_OF_A_FILE


def paragraph(text: str) -> str:
    """A text in lines that fit the terminal."""
    return textwrap.fill(text, _width() if sys.stdout.isatty() else 100)
