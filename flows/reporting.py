"""The reporter that the caller of a flow has for it; `run_log.reporter` adds Prefect's log.

The command line imports this module, which does not import Prefect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from patchsae.pipeline.core.progress import Reporter

_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


@contextlib.contextmanager
def reporting_to(reporter: Reporter) -> Iterator[None]:
    """Flows that are called inside the `with` block report to `reporter`."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def callers_reporter() -> Reporter | None:
    """The reporter of the `reporting_to` block that the flow is called in; None outside of one."""
    return _reporter.get()
