"""Polars SQL over every table of a store, and the one table about the store itself: `artifacts`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Literal

import polars as pl

from flows.show import status_rows
from pipeline.config import nearest
from storage import tables
from storage.artifacts import Store
from storage.errors import UserError

Format = Literal["table", "csv", "json", "parquet"]
ARTIFACTS = "artifacts"


def _artifacts(store: Store) -> pl.LazyFrame:
    rows = [{**row, "summary": json.dumps(row["summary"])} for row in status_rows(store)]
    types = {"stage": pl.String, "key": pl.String, "state": pl.String, "path": pl.String, "bytes": pl.Int64}
    return pl.LazyFrame(
        [{name: row[name] for name in (*types, "summary")} for row in rows],
        schema={**types, "summary": pl.String},
    )


def execute(store: Store, query: str) -> pl.DataFrame:
    """The rows of a SQL query. Only the tables it mentions are opened. Raises UserError on a faulty query."""
    files = tables.names(store)
    words = set(re.findall(r"\w+", query))
    frames = {name: tables.scan(name, store) for name in files if name in words}
    if ARTIFACTS in words:
        frames[ARTIFACTS] = _artifacts(store)
    context = pl.SQLContext(frames=frames)
    try:
        return context.execute(query, eager=True)
    except pl.exceptions.PolarsError as error:
        raise UserError(_explain(str(error).splitlines()[0], [*files, ARTIFACTS], frames)) from None


def _explain(message: str, known: list[str], frames: dict[str, pl.LazyFrame]) -> str:
    """A Polars error as one sentence with the remedy."""
    if found := re.match(r"relation '(.+)' was not found", message):
        return f"query: no table `{found[1]}` in this store{nearest(found[1], known)}"
    if found := re.match(r'unable to find column "(.+?)"', message):
        columns = {column for frame in frames.values() for column in frame.collect_schema().names()}
        return f"query: no column `{found[1]}` in {', '.join(sorted(frames))}{nearest(found[1], columns)}"
    return f"query: {message.removeprefix('sql parser error: ').rstrip('.')}; it is read as Polars SQL."


def write(frame: pl.DataFrame, style: Format, output: Path | None) -> None:
    """Writes rows to a file, or to standard output. Raises UserError for Parquet onto a terminal."""
    if style == "parquet" and output is None and sys.stdout.isatty():
        raise UserError("--format parquet: not readable on a terminal; name a file with --output FILE.")
    match style:
        case "table":
            with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=10_000, fmt_str_lengths=100):
                data = f"{frame}\n".encode()
        case "csv":
            data = frame.write_csv().encode()
        case "json":
            data = frame.write_json().encode() + b"\n"
        case "parquet":
            if output is not None:
                frame.write_parquet(output)
            else:
                frame.write_parquet(sys.stdout.buffer)
            return
    if output is not None:
        output.write_bytes(data)
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def describe(store: Store) -> list[list[str]]:
    """(table, column, type, description) of every column of every table, from the Parquet metadata."""
    return [
        [name, *column]
        for name, files in sorted(tables.names(store).items())
        for column in tables.columns(files[0])
    ]
