"""`table` and `paragraph`, with which the commands print to a terminal or a file."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH_OF_A_FILE = 10_000


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> str:
    """A table as text, one line per row. Columns named in `right` are right-aligned.

    On a terminal, cells that are too long continue on the next line.
    """
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=any(header))
    for name in header:
        shown.add_column(Text(name), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=_width())
    console.print(shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip("\n").split("\n"))


def _width() -> int:
    return Console(file=sys.stdout).width if sys.stdout.isatty() else _WIDTH_OF_A_FILE


def paragraph(text: str) -> str:
    """A text in lines that fit the terminal."""
    return textwrap.fill(text, _width() if sys.stdout.isatty() else 100)
