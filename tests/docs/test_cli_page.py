"""docs/cli.md names every command and every option, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from patchsae.flows.cli.app import app
from patchsae.storage.run_logs import KEPT

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
EVERYWHERE = {"--quiet", "--verbose"}


def options() -> dict[str, set[str]]:
    """Command -> its long options, without those that every command has."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        words = {word for parameter in command.params for word in parameter.opts if word.startswith("--")}
        assert words >= EVERYWHERE, f"{name} lacks --quiet or --verbose"
        found[name] = words - EVERYWHERE
    return found


def test_options_are_those_of_the_commands() -> None:
    rows = re.findall(r"^\| `(\w[\w-]*)` \| (.*) \|$", PAGE, flags=re.MULTILINE)
    assert {command: set(re.findall(r"`(--[\w-]+)`", words)) for command, words in rows} == options()


def test_every_command_has_its_line() -> None:
    section = PAGE.partition("## Commands")[2].partition("\n## ")[0]
    named = set(
        re.findall(
            r"`(?:patchsae )?(\w[\w-]*)", " ".join(re.findall(r"^\| (.*?) \|", section, flags=re.MULTILINE))
        )
    )
    assert named == options().keys()


def test_the_number_of_logs_is_the_one_in_the_code() -> None:
    assert f"The newest {KEPT} are kept" in PAGE


def test_every_command_teaches_by_its_help() -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert "patchsae " in command.help, f"{name}: no example in its help"
        for parameter in command.params:
            assert parameter.help, f"{name}: {parameter.name} has no help"
