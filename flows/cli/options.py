"""The arguments and options that several commands share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from patchsae.flows.cli import completion
from patchsae.flows.cli.screen import Verbosity
from patchsae.pipeline.core.resources import Resources

StoreOption = Annotated[
    str,
    typer.Option("--store", metavar="URI", envvar="PATCHSAE_STORE", help="Folder that holds all results."),
]
ExperimentArgument = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help=f"A preset ({', '.join(completion.presets())}) or a YAML file.",
        autocompletion=completion.experiments,
    ),
]
RecordOption = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        metavar="NAME",
        help="Only artifacts of this experiment, by its name in the store.",
        autocompletion=completion.records,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a field: `train.l1_coefficient=1e-4` (every SAE), `train/relu.seed=1` (one), or its "
        "path in the YAML, `datasets.images.root=/data`. May be repeated.",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="STAGE",
        help="Run only this stage (`train`, `train/relu`). May be repeated.",
        autocompletion=completion.addresses,
    ),
]
RowsFormatOption = Annotated[
    Literal["table", "csv", "json", "jsonl", "parquet"] | None,
    typer.Option("--format", help="Format of the rows.  [default: told by --output, else table]"),
]
RowsOutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FILE",
        help="Write to this file: .csv, .json, .jsonl or .ndjson, .parquet, .txt (a table).",
    ),
]
UpToOption = Annotated[
    list[str] | None,
    typer.Option(
        "--up-to",
        metavar="STAGE",
        help="Run only this stage (`train`, `train/relu`) and what it needs. May be repeated.",
        autocompletion=completion.addresses,
    ),
]
RerunOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rerun",
        metavar="STAGE",
        help="Build this stage again (`train`, `train/relu`). May be repeated.",
        autocompletion=completion.addresses,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace files that are there already.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show only errors and the result.")]
VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show what stages do, warnings of libraries, and tracebacks too."),
]

_RESOURCES = "resources"


def with_resources(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command one option per field of `Resources` instead of its parameter `resources`."""
    settings = {one.name: one for one in dataclasses.fields(Resources)}

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in settings}
        chosen["log"] = tuple(chosen["log"] or ())
        command(**given, resources=Resources(**chosen))

    own = [parameter for parameter in _parameters(command) if parameter.name != _RESOURCES]
    return _with_parameters(wrapped, [*own, *map(_option, settings.values())])


def with_verbosity(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options `--quiet` and `--verbose`, which may also stand before its name."""

    @functools.wraps(command)
    def wrapped(quiet: bool, verbose: bool, **given: Any) -> None:
        Verbosity.choose(quiet, verbose)
        command(**given)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in (("quiet", QuietOption), ("verbose", VerboseOption))
    ]
    return _with_parameters(wrapped, [*_parameters(command), *added])


def _parameters(command: Callable[..., None]) -> list[inspect.Parameter]:
    """The parameters of a command with their annotations as objects."""
    hints = typing.get_type_hints(command, include_extras=True)
    return [
        parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(command).parameters.items()
    ]


def _with_parameters(
    command: Callable[..., None], parameters: list[inspect.Parameter]
) -> Callable[..., None]:
    """Makes typer see other parameters of a command than those it is written with."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _option(setting: dataclasses.Field[Any]) -> inspect.Parameter:
    kind: Any = typing.get_type_hints(Resources)[setting.name]
    default = setting.default
    if kind == tuple[str, ...]:
        kind, default = list[str] | None, None
    option = typer.Option(
        help=setting.metadata["description"],
        metavar=_METAVARS.get(setting.name),
        min=setting.metadata["least"],
    )
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


_METAVARS = {
    "device": "NAME",
    "checkpoint_seconds": "SECONDS",
    "torchrun": "ARGUMENTS",
    "log": "tensorboard|wandb",
    "dask": "ADDRESS",
}
