"""The command `data`, which says what of CoOp's data sets is there, and fetches them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from patchsae.flows.cli import completion
from patchsae.flows.cli.commands import FAILED, failing
from patchsae.flows.cli.options import JsonOption
from patchsae.flows.cli.screen import Verbosity, result, say


def data(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Data sets, such as `oxford_pets`.  [default: all]",
            autocompletion=completion.coop_names,
        ),
    ] = None,
    root: Annotated[
        Path,
        typer.Option(
            "--root", metavar="DIR", envvar="PATCHSAE_DATA", help="Folder that holds the data sets."
        ),
    ] = Path("./data"),
    fetch: Annotated[
        bool,
        typer.Option("--fetch", help="Fetch what is missing of the data sets that are named, from a mirror."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say which of the data sets of CoOp's benchmark are there, and where to get the others; or fetch them.

    Exits with code 1 if a data set that is named is not there. A folder that is there is never changed. A killed
    fetch goes on where it was. ImageNet cannot be fetched.

    Examples:

    - `patchsae data --root ~/data`

    - `patchsae data oxford_pets dtd --root ~/data --fetch`
    """
    from patchsae.flows.cli.bars import reporter
    from patchsae.flows.cli.data_text import data_rows, data_text
    from patchsae.pipeline.images.coop import fetch as mirror
    from patchsae.pipeline.images.coop.facts import FACTS, known_name
    from patchsae.pipeline.images.coop.found import look
    from patchsae.storage.errors import UserError

    chosen = [known_name(name) for name in names or FACTS]
    folder = root.expanduser().absolute()
    if fetch and not names:
        raise UserError("--fetch: fetches the data sets that are named; name some, such as `oxford_pets`.")
    if fetch:
        if Verbosity.quiet:
            os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        with failing():
            for name in chosen:
                mirror.fetch(name, folder, reporter(), say)
    found = [look(name, folder) for name in chosen]
    result(json.dumps(data_rows(found), indent=1) if as_json else data_text(found, explain=bool(names)))
    if names and any(one.state != "found" for one in found):
        raise typer.Exit(FAILED)
