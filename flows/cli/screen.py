"""What a command shows: results on standard output, everything else on standard error, as much as was asked for.

`-q` leaves errors and results. `-v` adds what stages do, warnings of libraries, and tracebacks. A line on a
terminal says what a command is doing while it has nothing else to show.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import typer

from patchsae.pipeline.core.streams import forget, to_stderr
from patchsae.storage.errors import StoreWarning, UserError

LOGGER = logging.getLogger("patchsae")
"""The logger of stages, with the children `library` (warnings of libraries) and `screen` (lines of commands)."""
_LINES = LOGGER.getChild("screen")
_LIBRARIES = LOGGER.getChild("library")
_SECONDS_OF_SILENCE = 1.0


class OutputClosed(Exception):
    """Who read standard output has gone, as `head` does when it has its lines."""


class Verbosity:
    """How much this command shows."""

    quiet = False
    verbose = False

    @classmethod
    def choose(cls, quiet: bool, verbose: bool) -> None:
        """Adds what an option asked for, before or after the name of the command."""
        cls.quiet, cls.verbose = cls.quiet or quiet, cls.verbose or verbose
        if cls.quiet and cls.verbose:
            raise typer.BadParameter("--quiet and --verbose cannot both be given; leave one out.")
        LOGGER.setLevel(logging.INFO)
        _handler.shown = logging.INFO if cls.verbose else logging.ERROR if cls.quiet else logging.WARNING


class Waiting:
    """One line on a terminal that says what a command does, while nothing else was shown for a second.

    It counts the seconds, so that it moves while the command waits.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._label = ""
        self._since = self._silent_since = time.monotonic()
        self._shown = False
        self._n_bars = 0
        self._thread: threading.Thread | None = None

    def on(self, label: str, at_once: bool = False) -> None:
        """Says what the command does from now on; `at_once` if it is sure to take more than a second.

        Loading a large library keeps other threads from drawing the line.
        """
        if Verbosity.quiet or not sys.stderr.isatty():
            return
        with self._lock:
            self._label, self._since = label, time.monotonic()
            if self._shown or (at_once and not self._n_bars):
                self._draw()
            if self._thread is None:
                self._thread = threading.Thread(target=self._show_later, daemon=True)
                self._thread.start()

    def off(self) -> None:
        """Takes the line away, since something else is about to be shown. It comes back with the next `on`."""
        with self._lock:
            self._label = ""
            self._clear()
            self._silent_since = time.monotonic()

    @contextlib.contextmanager
    def beside_a_bar(self) -> Iterator[None]:
        """Shows no line inside the `with` block, in which a bar is shown."""
        with self._lock:
            self._n_bars += 1
            self._clear()
        try:
            yield
        finally:
            with self._lock:
                self._n_bars -= 1
                self._silent_since = time.monotonic()

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._shown = False

    def _show_later(self) -> None:
        while True:
            time.sleep(_SECONDS_OF_SILENCE / 4)
            with self._lock:
                is_due = time.monotonic() - self._silent_since >= _SECONDS_OF_SILENCE
                if self._label and (is_due or self._shown) and not (self._n_bars or Verbosity.quiet):
                    self._draw()

    def _draw(self) -> None:
        width = shutil.get_terminal_size().columns
        seconds = int(time.monotonic() - self._since)
        end = f" ... {seconds} s" if seconds else " ..."
        sys.stderr.write(f"\r\x1b[2K{self._label[: width - len(end) - 1]}{end}")
        sys.stderr.flush()
        self._shown = True


waiting = Waiting()


def result(text: str | bytes) -> None:
    """Writes a result to standard output.

    Raises OutputClosed if nobody reads it any more, and UserError if it cannot be written.
    """
    waiting.off()
    data = text if isinstance(text, bytes) else f"{text}\n".encode(errors="replace")
    try:
        sys.stdout.flush()
        left = memoryview(data)
        # With PYTHONUNBUFFERED one call may write a part only, such as what a pipe took before it was closed.
        while left:
            left = left[sys.stdout.buffer.write(left) :]
        sys.stdout.flush()
    except BrokenPipeError:
        forget(sys.stdout)
        raise OutputClosed from None
    except OSError as fault:
        forget(sys.stdout)
        raise UserError(f"standard output: cannot be written ({fault.strerror}).") from None


def say(text: str) -> None:
    """Says on standard error what goes on, unless the command is quiet."""
    _LINES.info(text)
    if not Verbosity.quiet:
        error(text)


def error(text: str) -> None:
    """Writes a line to standard error."""
    waiting.off()
    to_stderr(text)


class _Lines(logging.Handler):
    """Shows records of the logger `patchsae` on standard error; what stages do, while nothing else is shown."""

    shown = logging.WARNING

    def emit(self, record: logging.LogRecord) -> None:
        # What `say` and `error` showed is on the screen already.
        if record.name == _LINES.name:
            return
        if record.levelno >= self.shown:
            error(record.getMessage())
        if record.name == LOGGER.name:
            waiting.on(record.getMessage())


_handler = _Lines()


@contextlib.contextmanager
def showing() -> Iterator[None]:
    """Inside the `with` block records and warnings are shown as the options say, and a wait is announced."""
    Verbosity.quiet = Verbosity.verbose = False
    Verbosity.choose(False, False)
    LOGGER.addHandler(_handler)
    LOGGER.propagate = False
    waiting.on("loading patchsae")
    try:
        with _warnings_as_lines():
            yield
    finally:
        waiting.off()
        LOGGER.removeHandler(_handler)
        LOGGER.propagate = True


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Prints a StoreWarning as one line; those of libraries go to the log, and are shown with `-v`."""
    with warnings.catch_warnings():

        def show(message: Warning | str, category: type[Warning], *others: Any) -> None:
            if issubclass(category, StoreWarning):
                _LINES.warning(str(message))
                error(f"patchsae: {message}")
            else:
                _LIBRARIES.info("%s: %s", category.__name__, " ".join(str(message).split()))

        warnings.simplefilter("always", StoreWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield
