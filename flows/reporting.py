"""The reporter of the flows that this process runs: bars or lines on standard error, unless the caller has its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from patchsae.pipeline.core.progress import ConsoleReporter, Reporter

_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


@contextlib.contextmanager
def reporting_to(reporter: Reporter) -> Iterator[None]:
    """Flows that are called inside the `with` block report to `reporter`."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def current_reporter() -> Reporter:
    return _reporter.get() or ConsoleReporter()
