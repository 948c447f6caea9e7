"""`table`, with which the commands print tables to a terminal or a file."""

from __future__ import annotations

import io
import sys
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
    width = Console(file=sys.stdout).width if sys.stdout.isatty() else _WIDTH_OF_A_FILE
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.rstrip("\n").split("\n"))
