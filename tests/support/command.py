"""The command line in this process, and the sentence with which it refuses its input."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from patchsae.flows.cli.app import app


def patchsae(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def sentence(result: Result, exit_code: int = 2) -> str:
    """The one line on standard error of a command that refused its input."""
    assert result.exit_code == exit_code, result.output
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("patchsae: ") and line.endswith((".", "?"))
    return line.removeprefix("patchsae: ")
