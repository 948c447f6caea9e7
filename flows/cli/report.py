"""The command `report`, which writes the pages of an experiment as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchsae.flows.cli import completion
from patchsae.flows.cli.options import StoreOption


def report(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="EXPERIMENT",
            help="An experiment of the store, by its name there.",
            autocompletion=completion.records,
        ),
    ],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.")],
    store: StoreOption = "./store",
    latents: Annotated[
        str | None,
        typer.Option(
            metavar="N|all|IDS|CONDITIONS",
            help="Latents of each SAE that have a page: the N that fire on most images, `all` that fire, ids such as "
            "`3,17`, or conditions such as `frequency>0.01;label_entropy<1.2`.  [default: 500, fewer with many views]",
        ),
    ] = None,
    images_per_latent: Annotated[
        int, typer.Option(min=1, max=1000, metavar="K", help="Images in each list of a latent or class.")
    ] = 12,
    images: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Images of each view that have a page.  [default: 50, fewer with many views]",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a report that is there already.")] = False,
) -> None:
    """Write the pages of `patchsae explore` for one experiment as files, to be mailed, archived or hosted.

    The folder needs no server and no network: open its `index.html` in a browser. The tables and scatters of latents are
    whole; single latents and images are a choice. It names no folder of this machine and no other experiment. What needs
    a server is left out: own images, predictions with latents switched off, SQL.

    Examples:

    - `patchsae report demo --to demo-report`

    - `patchsae report photos --to photos-report --latents 'label_entropy<1' --images 200`
    """
    from patchsae.explorer.report.contents import Choice
    from patchsae.explorer.report.write import Report, check, check_space
    from patchsae.flows.cli.bars import reporter
    from patchsae.flows.cli.commands import failing
    from patchsae.flows.cli.screen import result, say
    from patchsae.storage.store import Store

    check(to, force)
    made = Report(Store(store), experiment, Choice(latents, images_per_latent, images))
    expected = made.forecast()
    check_space(to, expected)
    say(f"The report takes at most about {expected}.")
    with failing():
        written = made.write(to, force, reporter())
    for sentence in made.left_out:
        say(sentence)
    result(f"{to / 'index.html'}: {written}. Open it in a browser; it needs no server and no network.")
