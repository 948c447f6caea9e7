"""Progress of long work: a bar on a terminal, a line now and then in a log. And sizes as people read them."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 15.0


def size(n_bytes: int | None) -> str:
    """Bytes with a decimal unit; `?` if they cannot be told."""
    if n_bytes is None:
        return "?"
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


@dataclass
class Bar:
    """One running count. `note` is shown behind it (a loss, a rate)."""

    label: str
    total: int
    unit: str
    done: int = 0
    note: str = ""

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        self.note = note or self.note
        self._show()

    def _show(self) -> None:
        """Silent unless a subclass shows it."""


class _TerminalBar(Bar):
    def attach(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task(
            self.label, total=self.total, completed=self.done, unit=self.unit, note=""
        )

    def _show(self) -> None:
        self._progress.update(self._task, completed=self.done, note=self.note)


class _LogBar(Bar):
    _last: float = 0.0

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last > _SECONDS_BETWEEN_LINES or self.done >= self.total:
            self._last = now
            print(
                f"{self.label}: {self.done:,}/{self.total:,} {self.unit} {self.note}".rstrip(),
                file=sys.stderr,
            )


class Reporter:
    """Opens bars. The plain one is silent, so that library use prints nothing."""

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """A bar for `total` units of work, of which `done` were there before."""
        yield Bar(label, total, unit, done)


class ConsoleReporter(Reporter):
    """Bars on standard error, or lines where that is not a terminal."""

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        console = Console(stderr=True)
        if not console.is_terminal:
            yield _LogBar(label, total, unit, done)
            return
        columns = (
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            bar = _TerminalBar(label, total, unit, done)
            bar.attach(progress)
            yield bar
