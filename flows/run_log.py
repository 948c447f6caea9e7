"""What a run writes into Prefect's log: progress, parts that failed, and errors of users as one line.

The lines appear in Prefect's UI with the run of the flow or task, and in the worker's output.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from prefect.context import FlowRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

from patchsae.flows.reporting import callers_reporter
from patchsae.pipeline.core.progress import Bar, ConsoleReporter, Reporter
from patchsae.storage.errors import UserError

PART_TASK = "part"

# A line after 10 s, then whenever a tenth of the time so far has passed, at most 5 minutes: 300 lines in a day.
_FIRST_SECONDS = 10.0
_LONGEST_SECONDS = 300.0
_SHARE = 0.1
# The loggers of flow runs and task runs, and those that speak of them once more.
_RUN_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")
_STAGES = logging.getLogger("patchsae")
_ENGINE_EXIT = "Engine execution exited"
_FINISHED = "Finished in state "

_logger: ContextVar[logging.Logger | logging.LoggerAdapter[Any]] = ContextVar("patchsae_run_logger")


def run_logger() -> logging.Logger | logging.LoggerAdapter[Any]:
    """The log of the stage's task, also inside the flow that maps its parts; else that of the present run."""
    try:
        return _logger.get()
    except LookupError:
        pass
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("prefect.patchsae")


@contextlib.contextmanager
def logging_to_this_run() -> Iterator[None]:
    """Inside the `with` block, `run_logger` is the log of the task that is running now."""
    token = _logger.set(get_run_logger())
    try:
        yield
    finally:
        _logger.reset(token)


def one_line(error: BaseException) -> str:
    """The error's sentence, followed by what was being worked on when it was raised."""
    notes = list(dict.fromkeys(reversed(getattr(error, "__notes__", []))))
    sentence = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    sentence = " ".join(sentence.split())
    return f"{sentence} ({', '.join(notes)})" if notes else sentence


class _Plain(logging.Filter):
    """Writes a UserError as one line, and the traceback of any other error once in this process.

    A task that fails is logged by the task, by each flow around it and by Prefect's engine. Lines about parts
    that are finished are dropped: there may be thousands of parts, and the reporter counts them.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if _is_of_finished_part(record):
            return False
        if record.msg.startswith(f"{_FINISHED}Failed(") and f"{UserError.__name__}: " in record.msg:
            record.msg = f"{_FINISHED}Failed; the reason is above."
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, UserError):
            if record.msg.startswith(_ENGINE_EXIT):
                return False
            _replace(record, one_line(error))
        elif isinstance(error, Exception):
            if getattr(error, "_patchsae_logged", None) == os.getpid():
                _replace(record, f"{one_line(error)}; its traceback is above.")
            error._patchsae_logged = os.getpid()  # type: ignore[attr-defined]
        return True


def _is_of_finished_part(record: logging.LogRecord) -> bool:
    of_part = getattr(record, "task_name", None) == PART_TASK
    return of_part and str(record.msg).startswith(f"{_FINISHED}Completed")


def _replace(record: logging.LogRecord, message: str) -> None:
    record.msg, record.args, record.exc_info, record.exc_text = message, (), None, None


_PLAIN = _Plain()


def plain_log() -> None:
    """Makes this process log as `_Plain` says. Flows and the tasks of parts call it first."""
    for name in _RUN_LOGGERS:
        # A filter that is there already is not added again.
        logging.getLogger(name).addFilter(_PLAIN)
    # It announces a dashboard, which local clusters do not have.
    logging.getLogger("prefect.task_runner.dask").setLevel(logging.WARNING)


def log_to_server_only() -> None:
    """Sends the log of runs to the server, and none of it to the terminal, which has bars instead."""
    for name in _RUN_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).propagate = False


class _LogBar(Bar):
    """Writes the count into the log at intervals that grow, and once when everything is done."""

    def begin(self) -> None:
        self._logger = run_logger()
        self._begun = time.monotonic()
        self._before = self.done
        self._next = self._begun + _FIRST_SECONDS
        self._is_complete = False

    def _show(self) -> None:
        now, complete = time.monotonic(), self.done >= self.total
        if self._is_complete or (now < self._next and not complete):
            return
        self._is_complete = complete
        elapsed = now - self._begun
        self._next = now + min(max(_FIRST_SECONDS, elapsed * _SHARE), _LONGEST_SECONDS)
        note = f", {self.note}" if self.note else ""
        left = self._left(elapsed)
        self._logger.info(f"{self.label}: {self.done:,}/{self.total:,} {self.unit}{note}{left}")

    def _left(self, elapsed: float) -> str:
        """About how long the rest takes, by the pace so far."""
        n = self.done - self._before
        if n <= 0 or self.done >= self.total:
            return ""
        seconds = elapsed / n * (self.total - self.done)
        return f", about {seconds / 60:,.0f} min left" if seconds >= 90 else f", about {seconds:.0f} s left"


class LogReporter(Reporter):
    """Opens bars that write lines into the log of the stage's task."""

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        bar = _LogBar(label, total, unit, done)
        bar.begin()
        yield bar


class _TwoBars(Bar):
    def attach(self, *bars: Bar) -> None:
        self._bars = bars

    def advance(self, n: int = 1, note: str = "") -> None:
        super().advance(n, note)
        for bar in self._bars:
            bar.advance(n, note)

    def within(self, done: int, total: int, unit: str) -> None:
        super().within(done, total, unit)
        for bar in self._bars:
            bar.within(done, total, unit)


class AndLogReporter(Reporter):
    """Opens bars of another reporter that write into the log too."""

    def __init__(self, shown: Reporter) -> None:
        self._shown = shown

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        given = (label, total, unit, done)
        with self._shown.bar(*given) as shown, LogReporter().bar(*given) as logged:
            both = _TwoBars(*given)
            both.attach(shown, logged)
            yield both


def reporter() -> Reporter:
    """The reporter of the present flow run: the log, and what its caller has or else lines and bars.

    A worker prints the log of a run that it has started, so there the log is all.
    """
    callers = callers_reporter()
    if callers is None and _is_deployed():
        return LogReporter()
    return AndLogReporter(callers or ConsoleReporter())


def _is_deployed() -> bool:
    """Whether a worker has started the present flow run."""
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None


class _ToRunLog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.name == _STAGES.name:
            run_logger().log(record.levelno, record.getMessage())


@contextlib.contextmanager
def stages_in_log() -> Iterator[None]:
    """Inside the `with` block, what stages say (that they start, that they wait) is in the log of the run."""
    handler, level, propagate = _ToRunLog(), _STAGES.level, _STAGES.propagate
    _STAGES.addHandler(handler)
    _STAGES.setLevel(level or logging.INFO)
    # The log of the run is printed already.
    _STAGES.propagate = False
    try:
        yield
    finally:
        _STAGES.removeHandler(handler)
        _STAGES.setLevel(level)
        _STAGES.propagate = propagate
