"""`patchsae`: its commands, in the groups in which `--help` lists them.

The modules of the commands import heavy modules only when a command is called, so that help is instant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from patchsae.flows.cli import data, encode, exchange, experiments, explore, look, paper, report, upkeep
from patchsae.flows.cli.commands import Commands
from patchsae.flows.cli.options import QuietOption, VerboseOption, with_verbosity
from patchsae.flows.cli.screen import Verbosity, result

app = typer.Typer(
    name="patchsae",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Sparse autoencoders on CLIP patch activations, from images to masking results.

An *experiment* (the name of a preset, or a YAML file) lists datasets, backbones, SAEs and evaluations.
*Stages* (index, weights, extract, train, statistics, masking, ...) compute them; `train/relu` is the stage
`train` of the SAE `relu`. Results are kept in a *store*, so that nothing is computed twice.

Start with `patchsae demo`; then `patchsae status`, and `patchsae query "SELECT * FROM masking"`.""",
)

GROUPS: dict[str, list[Callable[..., None]]] = {
    "Experiments": [experiments.init, experiments.demo, experiments.plan, experiments.run, look.kinds],
    "Data sets": [data.data],
    "Results": [
        explore.explore,
        report.report,
        encode.encode,
        look.status,
        look.tables,
        look.query,
        look.pick,
        paper.compare_paper,
    ],
    "SAEs of other tools": [exchange.export, exchange.import_, exchange.visaebench],
    "Upkeep of a store": [upkeep.verify, upkeep.gc],
}

for group, commands in GROUPS.items():
    for command in commands:
        name = command.__name__.strip("_").replace("_", "-")
        app.command(name, rich_help_panel=group)(with_verbosity(command))


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        result(f"patchsae {version('patchsae')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit."),
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Options of all commands; they may also stand behind the command."""
    Verbosity.choose(quiet, verbose)


if __name__ == "__main__":
    app()
