"""The commands that exchange SAEs with other tools; what they do is in `exchange.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.options import JsonOption, StoreOption

SaeArgument = Annotated[
    str, typer.Argument(metavar="SAE", help="Its address in a run (`train/relu`), or digits of its key.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace files that are there already.")]


def export(
    sae: SaeArgument,
    format_: Annotated[
        str,
        typer.Option(
            "--format", help="saelens, dictionary_learning, saev, saev-0.1 (the one on PyPI), patchsae."
        ),
    ],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.")],
    store: StoreOption = "./store",
    force: ForceOption = False,
) -> None:
    """Write an SAE as another tool's checkpoint.

    Example: `patchsae export train/relu --format saelens --to relu-saelens`
    """
    from flows.exchange import export as write
    from storage.artifacts import Store

    typer.echo("\n".join(str(path) for path in write(Store(store), sae, format_, to, force)))


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder, or the reference's or saev's file.")
    ],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.")],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="saelens, dictionary_learning, saev, reference, patchsae.  [default: what the files are]",
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Convert another tool's checkpoint to `sae.safetensors` and `config.json`; nothing in it is executed.

    To use it in an experiment no conversion is needed: `saes: {theirs: {kind: imported, path: PATH, ...}}`.
    """
    from flows.exchange import convert

    words, paths = convert(source, format_, to, force)
    typer.echo("\n".join([f"{source}: {words}", *map(str, paths)]))


def visaebench(
    sae: SaeArgument,
    store: StoreOption = "./store",
    split: Annotated[str, typer.Option(help="The images to score it on.")] = "test",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="localization, fvu, downstream_preservation, sparse_probing, absorption (ImageNet). May be "
            "repeated.  [default: the first four]",
        ),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Score an SAE with ViSAEBench on the activations in the store (`uv sync --group interchange` installs it)."""
    from flows.exchange import score
    from flows.show import table
    from pipeline.interchange.visaebench import DEFAULT_METRICS
    from storage.artifacts import Store

    rows = score(Store(store), sae, split, metric or DEFAULT_METRICS, device)
    header = ("metric", "dimension", "value", "better")
    shown = [[str(row[name]) if name != "value" else f"{row[name]:.4f}" for name in header] for row in rows]
    typer.echo(json.dumps(rows, indent=1) if as_json else table(header, shown, right=("value",)))
