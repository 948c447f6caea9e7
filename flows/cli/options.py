"""The arguments and options that several commands share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from patchsae import pipeline
from patchsae.pipeline.core.resources import Resources

_PRESETS = Path(pipeline.__path__[0]) / "experiment" / "presets"

StoreOption = Annotated[
    str,
    typer.Option("--store", metavar="URI", envvar="PATCHSAE_STORE", help="Folder that holds all results."),
]
ExperimentArgument = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT",
        help=f"A preset ({', '.join(sorted(path.stem for path in _PRESETS.glob('*.yaml')))}) or a YAML file.",
    ),
]
RecordOption = Annotated[
    str | None,
    typer.Option(
        "--experiment", metavar="NAME", help="Only artifacts of this experiment, by its name in the store."
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
        "--only", metavar="STAGE", help="Run only this stage (`train`, `train/relu`). May be repeated."
    ),
]
RerunOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rerun", metavar="STAGE", help="Build this stage again (`train`, `train/relu`). May be repeated."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_RESOURCES = "resources"


def with_resources(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command one option per field of `Resources` instead of its parameter `resources`."""
    hints = typing.get_type_hints(command, include_extras=True)
    settings = {one.name: one for one in dataclasses.fields(Resources)}
    parameters = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != _RESOURCES
    ]
    parameters += [_option(one) for one in settings.values()]

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in settings}
        chosen["log"] = tuple(chosen["log"] or ())
        command(**given, resources=Resources(**chosen))

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


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
