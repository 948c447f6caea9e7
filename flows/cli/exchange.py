"""The commands `export`, `import` and `visaebench`, whose work is done by `sae_files.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from patchsae.flows.cli import completion
from patchsae.flows.cli.options import ForceOption, JsonOption, StoreOption
from patchsae.flows.cli.screen import result, say

SaeArgument = Annotated[
    str,
    typer.Argument(
        metavar="SAE",
        help="Address of the SAE (`train/relu`), or the first digits of its key.",
        autocompletion=completion.saes,
    ),
]


def export(
    sae: SaeArgument,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="saelens, dictionary_learning, saev, saev-0.1 (the one on PyPI), patchsae.",
            autocompletion=completion.formats_to_write,
        ),
    ],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.")],
    store: StoreOption = "./store",
    force: ForceOption = False,
) -> None:
    """Write an SAE as a checkpoint of another tool.

    Example: `patchsae export train/relu --format saelens --to relu-saelens`
    """
    from patchsae.flows.cli.sae_files import export as write
    from patchsae.storage.store import Store

    result("\n".join(str(path) for path in write(Store(store), sae, format_, to, force)))


def import_(
    source: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A folder, or a file of saev or of the paper's released code."),
    ],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.")],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="saelens, dictionary_learning, saev, reference, patchsae.  [default: told by the files]",
            autocompletion=completion.formats_to_read,
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Convert another tool's checkpoint to `sae.safetensors` and `config.json`. No code in it is executed.

    An experiment can use the checkpoint without conversion: `saes: {theirs: {kind: imported, path: PATH,
    ...}}`.

    Example: `patchsae import relu-saelens --to relu`
    """
    from patchsae.flows.cli.sae_files import convert

    words, paths = convert(source, format_, to, force)
    result("\n".join([f"{source}: {words}", *map(str, paths)]))


def visaebench(
    sae: SaeArgument,
    store: StoreOption = "./store",
    split: Annotated[str, typer.Option(help="Split of the images the SAE is scored on.")] = "test",
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
    """Score an SAE with ViSAEBench on the activations in the store.

    `uv sync --group interchange` installs ViSAEBench.

    Example: `patchsae visaebench train/relu --metric fvu`
    """
    from patchsae.flows.cli.sae_files import score
    from patchsae.flows.cli.text import table
    from patchsae.pipeline.evaluations.visaebench import DEFAULT_METRICS, FVU_NOTE
    from patchsae.storage.store import Store

    rows = score(Store(store), sae, split, metric or DEFAULT_METRICS, device)
    header = ("metric", "dimension", "value", "better")
    shown = [[str(row[name]) if name != "value" else f"{row[name]:.4f}" for name in header] for row in rows]
    result(json.dumps(rows, indent=1) if as_json else table(header, shown, right=("value",)))
    if any(row["metric"] == "fvu" for row in rows):
        # Beside JSON it goes where no program reads.
        (say if as_json else result)(FVU_NOTE)
