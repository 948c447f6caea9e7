"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

StoreOption = Annotated[
    str,
    typer.Option("--store", metavar="URI", envvar="PATCHSAE_STORE", help="Folder that holds all results."),
]
ExperimentArgument = Annotated[
    str,
    typer.Argument(
        metavar="EXPERIMENT", help="A preset (demo, demo-sweep, imagenet-vit-b16) or a YAML file."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a field: `train.l1_coefficient=1e-4` (every SAE), `train/relu.seed=1` (one), or its path "
        "in the YAML, `datasets.images.root=/data`. May be repeated.",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="STAGE", help="Only this stage (`train`, `train/relu`). May be repeated."),
]
RerunOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rerun", metavar="STAGE", help="Build this stage again (`train`, `train/relu`). May be repeated."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON for programs instead of a table.")]
