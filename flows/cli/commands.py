"""How every command ends: errors, interrupts and warnings as one line, and the exit status."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from patchsae.flows.cli.signals import exit_status, stopped_by_signals
from patchsae.storage.errors import StoreWarning, UserError


class Commands(TyperGroup):
    """Prints a UserError as one line and exits with 2; an interrupt with 130, SIGTERM 143, SIGHUP 129."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with stopped_by_signals(), _plain_warnings():
                return super().invoke(ctx)
        except UserError as error:
            # The notes say what was being worked on when the error was raised.
            notes = "".join(f"\n  {note}" for note in reversed(getattr(error, "__notes__", [])))
            typer.echo(f"patchsae: {error}{notes}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt as interrupt:
            typer.echo(
                "patchsae: interrupted; what was finished is kept, the same command goes on.",
                err=True,
            )
            raise typer.Exit(exit_status(interrupt)) from None


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Prints a StoreWarning as one line."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def plain(message: Warning | str, category: type[Warning], *others: Any) -> None:
            if issubclass(category, StoreWarning):
                typer.echo(f"patchsae: {message}", err=True)
            else:
                show(message, category, *others)

        warnings.simplefilter("always", StoreWarning)
        warnings.showwarning = plain  # type: ignore[assignment]
        yield
