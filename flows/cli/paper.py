"""The command `compare-paper`: our tables beside the published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from patchsae.flows.cli.commands import FAILED
from patchsae.flows.cli.options import RecordOption, RowsFormatOption, RowsOutputOption, StoreOption
from patchsae.flows.cli.screen import result, say

if TYPE_CHECKING:
    import polars as pl

    from patchsae.pipeline.results.paper.compare import Comparison

PublishedTable = Literal["table-1", "table-2", "masking", "base-to-novel"]

_COLUMNS = (
    "dataset",
    "classes",
    "method",
    "quantity",
    "published",
    "ours",
    "difference",
    "std",
    "n_seeds",
    "seed",
    "setting",
    "remark",
)
_ALWAYS = ("dataset", "method", "quantity", "published", "ours", "difference")
_NUMBERS = ("published", "ours", "difference", "std", "n_seeds", "seed")
_OF_TABLE_2 = "table-2"


def compare_paper(
    store: StoreOption = "./store",
    experiment: RecordOption = None,
    table: Annotated[
        PublishedTable | None, typer.Option("--table", help="Only this published table.  [default: all]")
    ] = None,
    seeds: Annotated[bool, typer.Option("--seeds", help="Show a row per seed too.")] = False,
    style: RowsFormatOption = None,
    output: RowsOutputOption = None,
) -> None:
    """Show our results beside the published ones, cell by cell, with differences and what matters about them.

    Ours are means over adapters and SAEs that differ in the seed alone, with the standard deviation between seeds.
    Accuracies are in percent. What is missing is said, with the preset that makes it. Exits with code 1 if nothing
    could be compared. docs/paper.md says where the published figures are from and how sure they are.

    Examples:

    - `patchsae compare-paper --table table-1`

    - `patchsae compare-paper --experiment paper-table1 --seeds --output table1.csv`
    """
    from patchsae.flows.cli.look_text import format_of, write_bytes, write_rows
    from patchsae.pipeline.results.paper.compare import compare
    from patchsae.storage.store import Store

    chosen = format_of(style, output)
    found = compare(Store(store), experiment, seeds, [table] if table else ())
    if chosen == "table":
        text = comparison_text(found)
        if output is None:
            result(text)
        else:
            write_bytes(f"{text}\n".encode(), output)
    else:
        write_rows(found.frame, chosen, output)
        for sentence in (*found.missing.values(), *found.remarks):
            say(f"patchsae: {sentence}")
    if not found.n_compared:
        raise typer.Exit(FAILED)


def comparison_text(found: Comparison) -> str:
    """Every table of a comparison with its title, its notes, and what the store lacks."""
    from patchsae.flows.cli.text import paragraph
    from patchsae.pipeline.results.paper.published import TABLES

    texts = []
    for name in found.frame["table"].unique(maintain_order=True).to_list():
        of_table = found.frame.filter(table=name)
        texts.append(f"{name}: {TABLES[name].title}\n\n{_table(of_table)}")
        texts += [paragraph(note) for note in TABLES[name].notes]
        texts += [paragraph(found.missing[name])] if name in found.missing else []
    texts += [paragraph(remark) for remark in found.remarks]
    return "\n\n".join([*texts, _total(found)])


def _total(found: Comparison) -> str:
    from patchsae.pipeline.core.text import count

    n_cells = found.frame["published"].count()
    return f"{count(found.n_compared, 'row')} with ours beside a published figure; {count(n_cells, 'row')} with one."


def _table(rows: pl.DataFrame) -> str:
    from patchsae.flows.cli.text import table

    shown = [name for name in _COLUMNS if name in _ALWAYS or rows[name].count()]
    lines = [[_cell(name, row) for name in shown] for row in rows.iter_rows(named=True)]
    header = [{"n_seeds": "seeds"}.get(name, name) for name in shown]
    return table(header, lines, right=[*_NUMBERS, "seeds"])


def _cell(name: str, row: dict[str, object]) -> str:
    from patchsae.pipeline.results.paper.published import title

    value = row[name]
    # CLIP has no seeds.
    if value is None or (name == "n_seeds" and value == 0):
        return ""
    if name == "dataset":
        return title(str(value))
    if isinstance(value, float):
        sign = "+" if name == "difference" else ""
        # `z`: what rounds to 0 has no minus.
        return f"{value:{sign}.4g}" if row["table"] == _OF_TABLE_2 else f"{value:{sign}z.2f}"
    return str(value)
