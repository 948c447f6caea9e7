"""The command `encode`: the strongest latents of own images, and their maps as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchsae.flows.cli import completion
from patchsae.flows.cli.options import (
    ForceOption,
    RecordOption,
    RowsFormatOption,
    RowsOutputOption,
    StoreOption,
)
from patchsae.flows.cli.screen import say

if TYPE_CHECKING:
    import polars as pl

    from patchsae.api import EncodedImages


def encode(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")
    ],
    sae: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="SAE, by its name.  [default: the only one]",
            autocompletion=completion.sae_names,
        ),
    ] = None,
    store: StoreOption = "./store",
    experiment: RecordOption = None,
    k: Annotated[int, typer.Option("--k", min=1, metavar="N", help="Latents of each image.")] = 10,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the maps of these latents to a new folder, as pictures."),
    ] = None,
    style: RowsFormatOption = None,
    output: RowsOutputOption = None,
    force: ForceOption = False,
) -> None:
    """Print the strongest latents of own images, and write where each of them is active.

    The columns: image, latent, activation (mean over the image's tokens), token (the one on which the latent is
    largest), token_activation, and row and column of that token's patch. With `--to`, every latent has a picture,
    `FOLDER/IMAGE/latent-12.png`, and `FOLDER/IMAGE/sheet.png` shows all of them.

    Examples:

    - `patchsae encode photo.jpg --sae relu --to maps`

    - `patchsae encode photos/ --sae relu --k 3 --format csv`
    """
    from patchsae import api
    from patchsae.flows.cli.look_text import format_of, write_rows
    from patchsae.storage.errors import UserError

    chosen = format_of(style, output)
    opened = api.open(store)
    if sae is None:
        names = sorted(set(opened.saes["sae"].drop_nulls()))
        if len(names) != 1:
            raise UserError(f"--sae: say which SAE; the store has {', '.join(names) or 'none'}.")
        [sae] = names
    if to is not None:
        _check_folder(to, force)
    found = opened.sae(sae, experiment)
    encoded = found.encode(images)
    if to is not None:
        n_pictures = _write_maps(encoded, k, to)
        say(f"{n_pictures:,} maps written to {to}")
    write_rows(_with_patches(encoded, k), chosen, output)


def _check_folder(folder: Path, force: bool) -> None:
    """Raises UserError if the folder holds something and that may not be replaced."""
    from patchsae.storage.errors import UserError

    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: is a file; give a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UserError(f"--to {folder}: holds files already; give a new folder, or `--force`.")


def _with_patches(encoded: EncodedImages, k: int) -> pl.DataFrame:
    """The strongest latents, with the row and column of the patch on which each is largest."""
    import polars as pl

    top = encoded.top(k)
    cells = [encoded.layout.cell(token) or (None, None) for token in top["token"]]
    return top.with_columns(
        row=pl.Series([row for row, _ in cells], dtype=pl.Int32),
        column=pl.Series([column for _, column in cells], dtype=pl.Int32),
    )


def _write_maps(encoded: EncodedImages, k: int, to: Path) -> int:
    """Writes a picture for every image and each of its strongest latents; returns how many."""
    import polars as pl

    from patchsae.pipeline.results.overlay import sheet

    top, taken, n_pictures = encoded.top(k), set[str](), 0
    for image in encoded.images:
        stem = Path(image).stem or "image"
        name = next(
            one for n in range(len(taken) + 2) if (one := stem if n == 0 else f"{stem}-{n + 1}") not in taken
        )
        taken.add(name)
        pictures, captions = [], []
        (to / name).mkdir(parents=True, exist_ok=True)
        for row in top.filter(pl.col("image") == image).iter_rows(named=True):
            picture = encoded.picture(row["latent"], image)
            picture.save(to / name / f"latent-{row['latent']}.png")
            pictures.append(picture)
            captions.append(f"latent {row['latent']}: {row['activation']:.4g}")
        n_pictures += len(pictures)
        if pictures:
            sheet(pictures, captions).save(to / name / "sheet.png")
    return n_pictures
