"""The log of a run: what it was started with, each stage's begin and end, warnings, and the error, as plain text."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Iterator
from typing import Any, TextIO

from patchsae.flows.cli.screen import LOGGER, say
from patchsae.flows.cli.signals import Stopped
from patchsae.pipeline.core.provenance import provenance
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store


class _File(logging.StreamHandler[TextIO]):
    """Writes records to a file. A full disk ends the log and not the run."""

    def __init__(self, file: TextIO) -> None:
        super().__init__(file)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:
        """Gives the log up: what could not be written now would not be written later either."""
        logging.getLogger().removeHandler(self)
        LOGGER.removeHandler(self)


@contextlib.contextmanager
def logged(store: Store, name: str, settings: dict[str, Any]) -> Iterator[None]:
    """Writes the log of the run `name` while the `with` block runs, and says where it is.

    A store in which no log can be written gets none.
    """
    try:
        file = store.open_log(name)
    except OSError as error:
        say(f"No log of this run is written ({error.strerror}: {error.filename}).")
        yield
        return
    say(f"Log: {file.name}")
    handler = _File(file)
    LOGGER.addHandler(handler)
    # Warnings of libraries. Prefect keeps its own, and has its own log.
    logging.getLogger().addHandler(handler)
    try:
        for line in _header(settings):
            _note(line)
        yield
        _note("the run ended well")
    except BaseException as error:
        _note_error(error)
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        LOGGER.removeHandler(handler)
        # Closing writes what is left, for which the disk may be too full.
        with contextlib.suppress(OSError):
            file.close()


def _note(line: str) -> None:
    LOGGER.getChild("screen").info(line)


def _header(settings: dict[str, Any]) -> Iterator[str]:
    made_by = provenance()
    packages = ", ".join(f"{name} {version}" for name, version in made_by["packages"].items())
    yield f"command: {shlex.join(['patchsae', *sys.argv[1:]])}"
    yield f"folder: {os.getcwd()}"  # noqa: PTH109 (a sentence, not a path)
    yield f"host {made_by['host']}, process {os.getpid()}, Python {made_by['python']}, {packages}"
    yield f"time zone: {datetime.datetime.now().astimezone().strftime('%Z %z')}; git: {made_by['git'] or 'none'}"
    yield "settings: " + ", ".join(f"{name}={value!r}" for name, value in settings.items())


def _note_error(error: BaseException) -> None:
    screen = LOGGER.getChild("screen")
    if isinstance(error, KeyboardInterrupt):
        screen.error("the run was interrupted%s", f" ({error})" if isinstance(error, Stopped) else "")
        return
    if isinstance(error, UserError):
        screen.error("the run failed: %s", error)
    screen.error("traceback:\n%s", "".join(traceback.format_exception(error)).rstrip())
