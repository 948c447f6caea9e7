"""The commands that look into a store: `status`, `query`, `tables` and `pick`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from patchsae.flows.cli import completion
from patchsae.flows.cli.options import (
    JsonOption,
    RecordOption,
    RowsFormatOption,
    RowsOutputOption,
    StoreOption,
)
from patchsae.flows.cli.screen import result

if TYPE_CHECKING:
    from patchsae.storage.store import Store


def _open(uri: str) -> Store:
    from patchsae.storage.store import Store

    return Store(uri)


def status(
    store: StoreOption = "./store", experiment: RecordOption = None, as_json: JsonOption = False
) -> None:
    """List the artifacts of a store: stage, key, state, path, bytes, names, summary.

    Example: `patchsae status --experiment photos`
    """
    from patchsae.flows.cli.look_text import status_text
    from patchsae.pipeline.results.status import status_rows

    opened = _open(store)
    rows = status_rows(opened, experiment)
    result(json.dumps(rows, indent=1) if as_json else status_text(rows, opened))


def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A query in Polars SQL.")],
    store: StoreOption = "./store",
    experiment: RecordOption = None,
    style: RowsFormatOption = None,
    output: RowsOutputOption = None,
) -> None:
    """Query the tables of a store in SQL, and the table `artifacts`, which lists its artifacts.

    Examples:

    - `patchsae query "SELECT latent, frequency FROM latents WHERE NOT dead ORDER BY frequency DESC LIMIT 10"`

    - `patchsae query "SELECT sae, selection, k, accuracy FROM masking WHERE class IS NULL" --format csv`

    - `patchsae query "SELECT * FROM latents" --output latents.parquet`

    - `patchsae query "SHOW TABLES"`, `patchsae query "DESCRIBE latents"`

    The columns dataset, backbone, sae and evaluation of a table name what a row is about; a table has those
    that apply to it. `patchsae tables` lists all tables and says what each column means.
    """
    from patchsae.flows.cli.look_text import format_of, write_rows
    from patchsae.pipeline.results.sql import execute

    chosen = format_of(style, output)
    write_rows(execute(_open(store), sql, experiment), chosen, output)


def tables(store: StoreOption = "./store", as_json: JsonOption = False) -> None:
    """List the tables of a store with a sentence per column.

    Example: `patchsae tables --store /data/store`
    """
    from patchsae.flows.cli.text import table
    from patchsae.pipeline.results.sql import describe

    header = ("table", "column", "type", "description")
    rows = describe(_open(store))
    result(
        json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1)
        if as_json
        else table(header, rows)
    )


def kinds(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help="A kind (`topk`), a section (`saes`), or a field with settings of its own (`extract`).",
            autocompletion=completion.kinds,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what an experiment file can hold: the kinds, or the fields of one with types, defaults and meaning.

    Examples:

    - `patchsae kinds`

    - `patchsae kinds topk`
    """
    from patchsae.flows.cli.kinds_text import kind_rows, kinds_text

    result(json.dumps(kind_rows(kind), indent=1) if as_json else kinds_text(kind))


def pick(
    saes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SAE]...",
            help="Names; `*` stands for anything.  [default: all]",
            autocompletion=completion.sae_names,
        ),
    ] = None,
    store: StoreOption = "./store",
    by: Annotated[
        Literal["fvu", "zero_shot_kept"], typer.Option("--by", help="The number by which the best is chosen.")
    ] = "fvu",
    max_l0: Annotated[
        float | None, typer.Option(metavar="N", help="Largest L0: latents above 0 per token.")
    ] = None,
    max_dead: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Largest share of dead latents, from 0 to 1.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the SAEs that no other SAE beats in both L0 and FVU, and pick the best SAE within bounds.

    It reads the newest table `frontier` of the store, which an evaluation of kind `frontier` writes.

    Examples:

    - `patchsae pick --max-l0 32`

    - `patchsae pick 'sweep-topk*' --by zero_shot_kept --max-dead 0.05`
    """
    from patchsae.flows.cli.look_text import pick_json, pick_text
    from patchsae.pipeline.results.pick import best, candidates

    rows = candidates(_open(store), saes or [])
    chosen = best(rows, by, max_l0, max_dead)
    result(pick_json(rows, chosen) if as_json else pick_text(rows, chosen, by))
