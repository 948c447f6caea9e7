"""The text that `patchsae status`, `query` and `pick` print."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from patchsae.flows.cli.screen import result
from patchsae.flows.cli.text import table
from patchsae.pipeline.core.text import count, number, size
from patchsae.pipeline.results.pick import By
from patchsae.pipeline.results.sql import without_bytes
from patchsae.pipeline.results.status import experiments_of_records, names_text
from patchsae.storage.errors import UserError
from patchsae.storage.files import expanded
from patchsae.storage.store import Store


def summary_text(summary: dict[str, Any]) -> str:
    """A summary on one line."""
    return ", ".join(f"{name} {number(value)}" for name, value in summary.items())


def status_text(rows: Sequence[dict[str, Any]], store: Store) -> str:
    """The artifacts of a store as a table, or a sentence if there are none."""
    if not rows:
        return f"{store.root}: nothing here yet; `patchsae demo` makes a first experiment."
    experiments = experiments_of_records(store)
    shown = [
        [
            r["stage"],
            r["key"][:16],
            r["state"],
            size(r["bytes"]),
            names_text(r["names"], experiments),
            summary_text(r["summary"]),
        ]
        for r in rows
    ]
    total = sum(row["bytes"] for row in rows)
    return (
        table(("stage", "key", "state", "bytes", "names", "summary"), shown, right=("bytes",))
        + f"\n\n{count(len(rows), 'artifact')}, {size(total)} at {store.root}"
    )


_WIDTH, _SHOWN_OF_A_TEXT = 10_000, 100

Format = Literal["table", "csv", "json", "jsonl", "parquet"]
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "table",
}


def format_of(style: Format | None, output: Path | None) -> Format:
    """The format that was asked for, else that of the file's suffix, else a table. Raises UserError for others."""
    if style is not None or output is None:
        return style or "table"
    if output.suffix.lower() not in _SUFFIXES:
        raise UserError(
            f"--output {output}: the suffix `{output.suffix}` tells no format; use one of "
            f"{', '.join(_SUFFIXES)}, or say it with --format."
        )
    return _SUFFIXES[output.suffix.lower()]


def write_rows(frame: pl.DataFrame, style: Format, output: Path | None) -> None:
    """Writes rows to a file or to standard output. Raises UserError if they cannot be written there."""
    if style == "parquet" and output is None and sys.stdout.isatty():
        raise UserError("--format parquet: not readable on a terminal; name a file with --output FILE.")
    data = _rendered(frame, style, whole=output is not None or not sys.stdout.isatty())
    if output is None:
        result(data)
    else:
        write_bytes(data, output)


def write_bytes(data: bytes, output: Path) -> None:
    """Writes a file. Raises UserError if it cannot be written."""
    try:
        expanded(output).write_bytes(data)
    except OSError as error:
        raise UserError(
            f"--output {output}: cannot be written ({error.strerror}); name another file."
        ) from None


def _rendered(frame: pl.DataFrame, style: Format, whole: bool) -> bytes:
    """The rows as bytes. A table shows texts whole, or else their first 100 characters."""
    if style != "parquet":
        frame = without_bytes(frame)
    match style:
        case "table":
            longest = _WIDTH if whole else _SHOWN_OF_A_TEXT
            with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=_WIDTH, fmt_str_lengths=longest):
                return f"{frame}\n".encode()
        case "csv":
            # CSV has no lists.
            lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List)]
            return (
                frame.with_columns(pl.col(lists).cast(pl.List(pl.String)).list.join("; "))
                .write_csv()
                .encode()
            )
        case "json":
            return frame.write_json().encode() + b"\n"
        case "jsonl":
            return frame.write_ndjson().encode()
        case "parquet":
            buffer = io.BytesIO()
            frame.write_parquet(buffer)
            return buffer.getvalue()


_PICK_COLUMNS = (
    "sae",
    "kind",
    "n_latents",
    "l0",
    "fvu",
    "explained_variance",
    "dead_fraction",
    "set_kept_mean",
)


def pick_text(rows: pl.DataFrame, picked: pl.DataFrame, by: By) -> str:
    """The SAEs on the frontier as a table in which the picked one is marked, and its folder."""
    name, key = picked["sae"][0], picked["sae_key"][0]
    shown = rows.filter(pl.col("on_frontier") | (pl.col("sae_key") == key))
    lines = [
        ["->" if row["sae_key"] == key else "", *(_cell(row[column]) for column in _PICK_COLUMNS)]
        for row in shown.iter_rows(named=True)
    ]
    header = ["", "sae", "objective", "latents", "L0", "FVU", "EV", "dead", "zero-shot kept"]
    return "\n\n".join(
        (
            f"{len(shown)} of {len(rows)} SAEs are on the frontier of L0 and FVU.",
            table(header, lines, right=header[3:]),
            f"Best by {by}: train/{name}, {picked['path'][0]}",
        )
    )


def pick_json(rows: pl.DataFrame, picked: pl.DataFrame) -> str:
    """Every row as a JSON object; `picked` is true in one of them."""
    key = picked["sae_key"][0]
    return json.dumps(
        [{**row, "picked": row["sae_key"] == key} for row in rows.iter_rows(named=True)], indent=1
    )


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value if value is not None else "")
