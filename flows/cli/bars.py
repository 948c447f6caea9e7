"""Bars of long work on the screen: none with `--quiet`, and never beside the line that says what is waited for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from patchsae.flows.cli.screen import Verbosity, waiting
from patchsae.pipeline.core.progress import Bar, ConsoleReporter, Reporter


class ScreenReporter(ConsoleReporter):
    """Opens bars as `ConsoleReporter`, in the place of the line of `waiting`."""

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        with waiting.beside_a_bar(), super().bar(label, total, unit, done) as bar:
            yield bar


def reporter() -> Reporter:
    """The reporter that the command's options ask for."""
    return Reporter() if Verbosity.quiet else ScreenReporter()
