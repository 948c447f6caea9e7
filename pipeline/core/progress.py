"""Progress of long work, which stages report: bars on a terminal, or a line every 15 seconds in a log.

`flows.run_log` has the reporter that writes into Prefect's log.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from patchsae.pipeline.core.streams import to_stderr

T = TypeVar("T")
_SECONDS_BETWEEN_LINES = 15.0


@dataclass
class Bar:
    """A running count of finished units of work. `note` is a text shown after the count, such as the loss.

    `share`, from 0 to 1, is how much of the present unit is done.
    """

    label: str
    total: int
    unit: str
    done: int = 0
    note: str = ""
    share: float = 0.0

    def advance(self, n: int = 1, note: str = "") -> None:
        self.done += n
        self.share = 0.0
        self.note = note or self.note
        self._show()

    def within(self, done: int, total: int, unit: str) -> None:
        """Shows how far the present unit of work is: `done` of its `total` smaller units."""
        self.share = done / total
        self.note = f"+ {done:,}/{total:,} {unit}" if done < total else ""
        self._show()

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each of which is a unit of work that is done when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    def _show(self) -> None:
        """Shows nothing; subclasses show the count."""


class _TerminalBar(Bar):
    def attach(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task(
            self.label, total=self.total, completed=self.done, unit=self.unit, note=""
        )

    def _show(self) -> None:
        self._progress.update(self._task, completed=self.done + self.share, note=self.note)


class _LogBar(Bar):
    _last: float = 0.0

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._last > _SECONDS_BETWEEN_LINES or self.done >= self.total:
            self._last = now
            to_stderr(f"{self.label}: {self.done:,}/{self.total:,} {self.unit} {self.note}".rstrip())


class Reporter:
    """Opens bars that show nothing, so that code that uses patchsae as a library prints nothing."""

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        """A bar for `total` units of work, of which `done` were finished before."""
        yield Bar(label, total, unit, done)


class AddressedReporter(Reporter):
    """Opens bars of another reporter, labelled by the address of what is built (`train/relu` for `train`)."""

    def __init__(self, reporter: Reporter, stage: str, address: str) -> None:
        self._reporter = reporter
        self._stage = stage
        self._address = address

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        detail = label.removeprefix(self._stage) if label.startswith(self._stage) else f", {label}"
        with self._reporter.bar(self._address + detail, total, unit, done) as bar:
            yield bar


class ConsoleReporter(Reporter):
    """Opens bars on standard error. Where that is not a terminal, they write lines."""

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        console = Console(stderr=True)
        if not console.is_terminal:
            yield _LogBar(label, total, unit, done)
            return
        columns = (
            # It turns, also while a unit of work takes minutes.
            SpinnerColumn("line"),
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
