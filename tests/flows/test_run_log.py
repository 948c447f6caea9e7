"""What runs write into Prefect's log: one line per error of a user, and progress at intervals that grow."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest

from patchsae.flows import run_log
from patchsae.flows.map_parts import parts_text
from patchsae.flows.run_log import LogReporter, one_line, plain_log
from patchsae.pipeline.core.progress import AddressedReporter
from patchsae.pipeline.core.stage import naming
from patchsae.storage.errors import UserError

LOGGER = logging.getLogger("prefect.task_runs")
Read = Callable[[], list[str]]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """A function that returns what `LOGGER` has written, tracebacks included."""
    plain_log()
    texts: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(self.format(record))

    monkeypatch.setattr(LOGGER, "handlers", [Keep()])
    monkeypatch.setattr(LOGGER, "propagate", False)
    monkeypatch.setattr(LOGGER, "disabled", False)
    LOGGER.setLevel(logging.INFO)
    return lambda: texts


def fail(error: Exception) -> None:
    """Logs an error as Prefect does: by a task, by the flow around it, and by the engine."""
    try:
        with naming("building masking/m abc"), naming("building masking/m abc"), naming("part 7"):
            try:
                raise KeyError("the cause")
            except KeyError as cause:
                raise error from cause
    except Exception as raised:
        LOGGER.exception("Task run failed with exception: %r - %s", raised, "retries are exhausted")
        LOGGER.info(
            f"Finished in state Failed('Task run encountered an exception {type(raised).__name__}: {raised}')"
        )
        LOGGER.exception("Encountered exception during execution: %r", raised)
        LOGGER.error("Engine execution exited with unexpected exception", exc_info=True)


def test_a_users_error_is_a_line_that_names_what_was_worked_on(read: Read) -> None:
    fail(UserError("a.jpg: not an image; delete it."))
    line = "a.jpg: not an image; delete it. (building masking/m abc, part 7)"
    assert read() == [line, "Finished in state Failed; the reason is above.", line]


def test_a_bug_has_its_traceback_once(read: Read) -> None:
    fail(ValueError("a bug"))
    first, finished, *others = read()
    assert "Traceback" in first and "KeyError: 'the cause'" in first and "part 7" in first
    assert finished == "Finished in state Failed('Task run encountered an exception ValueError: a bug')"
    assert set(others) == {"ValueError: a bug (building masking/m abc, part 7); its traceback is above."}


def test_an_error_of_several_lines_is_one_line() -> None:
    assert one_line(UserError("first\n  second")) == "first second"


def test_parts_that_are_finished_are_not_lines(read: Read) -> None:
    for name in ("part", "stage"):
        LOGGER.info("Finished in state Completed()", extra={"task_name": name})
        LOGGER.error("Finished in state Failed()", extra={"task_name": name})
    assert [text[:24] for text in read()] == [
        "Finished in state Failed",
        "Finished in state Comple",
        "Finished in state Failed",
    ]


def test_progress_is_a_line_at_intervals_that_grow(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(run_log, "run_logger", lambda: LOGGER)
    n_parts = 10_000
    with AddressedReporter(LogReporter(), "masking", "masking/m").bar("masking", n_parts, "parts") as bar:
        for _ in range(n_parts):
            now += 2
            bar.advance(note="loss 1")
        bar.advance(0)
    lines = read()
    assert lines[0] == "masking/m: 5/10,000 parts, loss 1, about 333 min left"
    assert lines[-1] == "masking/m: 10,000/10,000 parts, loss 1"
    assert 30 < len(lines) < 130


def test_a_bar_of_a_detail_has_the_address_too(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "run_logger", lambda: LOGGER)
    reporter = AddressedReporter(LogReporter(), "statistics", "statistics/s")
    for label in ("statistics, tables", "means"):
        with reporter.bar(label, 1, "parts") as bar:
            bar.advance()
    assert read() == ["statistics/s, tables: 1/1 parts", "statistics/s, means: 1/1 parts"]


def test_parts_are_named_by_their_ranges() -> None:
    assert parts_text([3, 4, 5]) == "3-5"
    assert parts_text([9, 0]) == "0, 9"
    assert parts_text([0, 1, 3, 5, 7, 8]) == "0-1, 3, 5 and 2 more"
