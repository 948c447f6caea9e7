"""How every command ends: errors, interrupts and warnings as one line, and the exit status.

0    done
1    it failed: a stage failed or is blocked, or the store is damaged
2    it was refused before anything began: an option, an experiment file, a query, the space on the disk
128 + N    signal N ended it: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP, 141 nobody reads its output any more
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import signal
import traceback
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from patchsae.flows.cli.screen import OutputClosed, Verbosity, error, showing
from patchsae.flows.cli.signals import exit_status, stopped_by_signals
from patchsae.storage.errors import UserError

FAILED, REFUSED = 1, 2


class Commands(TyperGroup):
    """Prints a UserError as one line and exits with 2, or 1 where it came out of `failing`."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # Otherwise the last garbage collection looks at all that torch and Prefect hold: 2 seconds of CPU time.
        atexit.register(gc.freeze)
        return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with showing():
            try:
                with stopped_by_signals():
                    return super().invoke(ctx)
            except UserError as fault:
                if Verbosity.verbose:
                    error("".join(traceback.format_exception(fault)).rstrip())
                error(f"patchsae: {with_notes(fault)}")
                raise typer.Exit(FAILED if isinstance(fault, _Failed) else REFUSED) from None
            except KeyboardInterrupt as interrupt:
                error("patchsae: interrupted; what was finished is kept, the same command goes on.")
                raise typer.Exit(exit_status(interrupt)) from None
            except OutputClosed:
                raise typer.Exit(128 + signal.SIGPIPE) from None


class _Failed(UserError):
    """An error of something that had begun, or that is blocked."""


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """A UserError raised inside the `with` block ends the command with 1 in place of 2."""
    try:
        yield
    except UserError as fault:
        failed = _Failed(*fault.args)
        for note in getattr(fault, "__notes__", []):
            failed.add_note(note)
        raise failed from fault


def with_notes(fault: BaseException) -> str:
    """An error and its notes, which say what was being worked on when it was raised. All lines but the first are
    indented."""
    return "\n".join([str(fault), *reversed(getattr(fault, "__notes__", []))]).replace("\n", "\n  ")
