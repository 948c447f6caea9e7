"""Polars SQL over the tables of a store, and the table `artifacts` of its artifacts, for `patchsae query`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import polars as pl

from patchsae.pipeline.core.text import count, nearest
from patchsae.pipeline.results.status import status_rows
from patchsae.pipeline.results.tables import KEY_COLUMNS, NAME_COLUMNS, Catalog
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store

T = TypeVar("T")

ARTIFACTS = "artifacts"
ARTIFACT_COLUMNS: dict[str, tuple[Any, str]] = {
    "stage": (pl.String, "Stage that made the artifact."),
    "key": (pl.String, "Key of the artifact, which other tables have in the column `artifact`."),
    "state": (pl.String, "State of the artifact: committed, partial (unfinished) or damaged."),
    "path": (pl.String, "Folder of the artifact."),
    "bytes": (pl.Int64, "Size of the folder in bytes."),
    "summary": (pl.String, "Summary numbers of the artifact, as JSON."),
    "names": (pl.List(pl.String), "Names of the artifact in experiments, as `experiment: stage/name`."),
    "inputs": (pl.String, "Role -> identity of the artifact that filled the role, as JSON."),
    "config": (pl.String, "Hashed config of the artifact, as JSON."),
}

_ABOUT_TABLES = re.compile(
    r"""\s*(?:SHOW\s+TABLES|(?:DESCRIBE|DESC)\s+(?:TABLE\s+)?["`]?(?P<name>\w+)["`]?)\s*;?\s*""",
    re.IGNORECASE,
)
"""SHOW TABLES, and DESCRIBE with the name of a table."""

# The functions with which Polars SQL reads files and URLs: read_csv, read_parquet, read_ipc, read_json and
# read_ndjson, in capitals and quotes too. Those that later versions add will hardly have other names.
_READER = re.compile(r"(?<![a-z_])read_\w+", re.IGNORECASE)
# What Polars takes for a text, a comment or a quoted name, where there is no doubt about it.
_TOKEN = re.compile(
    r"""(?<![\w&])'(?P<text>[^'\\]*)'
      | (?<![^\s\w)"'`,;])--[^\r\n]*
      | (?<![^\s\w)"'`,;])/\*(?:(?!/\*|\*/).)*\*/
      | (?<![\w&])"(?P<double>[^"\\]*)"
      | (?<![\w&])`(?P<back>[^`\\]*)`""",
    re.VERBOSE | re.DOTALL,
)
# What is left of the others: of escapes, of texts with a prefix (E'') or in dollars, of nested comments.
_DOUBT = re.compile(r"['\"`\\$#\r]|--|/\*|\*/")
# Polars also calls a function whose name is written as a text, as in FROM 'read_csv'('file').
_NAME = "\N{WHITE SQUARE}"
_CALLED_TEXT = re.compile(rf"{_NAME}\s*(\(|PARTITION\b)", re.IGNORECASE)


def _artifacts(store: Store, experiment: str | None) -> pl.LazyFrame:
    rows = [
        {name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()}
        for row in status_rows(store, experiment)
    ]
    return pl.LazyFrame(rows, schema={name: kind for name, (kind, _) in ARTIFACT_COLUMNS.items()})


def execute(store: Store, query: str, experiment: str | None = None) -> pl.DataFrame:
    """The rows of a SQL query over a store, or over one experiment of it. Only tables it mentions are opened.

    Raises UserError if the query is not valid, or if it reads anything but tables of the store.
    """
    return execute_with(store, query, experiment, pl.LazyFrame.collect)


def execute_with(store: Store, query: str, experiment: str | None, collect: Callable[[pl.LazyFrame], T]) -> T:
    """What `collect` makes of the rows of a query, such as the first ones. Raises UserError as `execute` does."""
    if about := _ABOUT_TABLES.fullmatch(query):
        return collect(_about_tables(store, experiment, about["name"]).lazy())
    _refuse_files(query)
    catalog = Catalog(store, experiment)
    words = set(re.findall(r"\w+", query))
    frames = {name: catalog.scan(name) for name in catalog.artifacts if name in words}
    if ARTIFACTS in words:
        frames[ARTIFACTS] = _artifacts(store, experiment)
    context = pl.SQLContext(frames=frames)
    try:
        return collect(context.execute(query, eager=False))
    except OSError as error:
        raise UserError(
            f"query: {error.filename or 'a table'} was deleted or replaced while it was read ({error}); query again."
        ) from None
    except pl.exceptions.PolarsError as error:
        message = str(error).splitlines()[0]
        raise UserError(_explain(message, [*catalog.artifacts, ARTIFACTS], frames)) from None


def without_bytes(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows with `1,832 bytes` in place of files, such as those of `thumbnails`, which texts cannot hold."""

    def told(value: bytes) -> str:
        return count(len(value), "byte")

    binary = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Binary)]
    return frame.with_columns(pl.col(name).map_elements(told, pl.String) for name in binary)


def _about_tables(store: Store, experiment: str | None, name: str | None) -> pl.DataFrame:
    """The tables with their numbers of columns, or the columns of the table `name`."""
    rows = describe(store, experiment)
    known = dict.fromkeys(table for table, *_ in rows)
    if name is None:
        counts = [(table, sum(row[0] == table for row in rows)) for table in known]
        return pl.DataFrame(counts, schema={"table": pl.String, "columns": pl.Int64}, orient="row")
    if name not in known:
        raise UserError(f"query: no table `{name}` in this store{nearest(name, known)}")
    columns = [row[1:] for row in rows if row[0] == name]
    return pl.DataFrame(
        columns, schema=dict.fromkeys(("column", "type", "description"), pl.String), orient="row"
    )


def _refuse_files(query: str) -> None:
    """Raises UserError if a query calls a function that reads files, however it is written.

    Texts and comments may name such a function. Up to the first token that is in doubt, `_TOKEN` divides the
    query as Polars does. That token leaves a character of `_DOUBT`, so that nothing can hide behind it.
    """
    query = query.replace("\r\n", "\n")
    found = _READER.search(query)
    if found is None:
        return
    code = _TOKEN.sub(lambda token: f" {_NAME} " if _READER.fullmatch(token["text"] or "") else " ", query)
    names = [token["double"] or token["back"] or "" for token in _TOKEN.finditer(query)]
    called = next(filter(None, map(_READER.search, [code, *names])), None)
    if called or _DOUBT.search(code) or _CALLED_TEXT.search(code):
        raise UserError(
            f"query: `{(called or found)[0]}` reads files, and a query can read only the tables of the store"
            "; read other files with Polars in Python."
        )


def _explain(message: str, known: list[str], frames: dict[str, pl.LazyFrame]) -> str:
    """A Polars error as one sentence with the remedy. `known` are all tables, `frames` the opened ones."""
    if found := re.match(r"relation '(.+)' was not found", message):
        if known == [ARTIFACTS]:
            return (
                f"query: no table `{found[1]}` in this store: it has no results yet; run an experiment first."
            )
        return f"query: no table `{found[1]}` in this store{nearest(found[1], known)}"
    if found := re.match(r'unable to find column "(.+?)"', message):
        missing, tables = found[1], sorted(frames)
        if missing.rpartition(".")[2] == "experiment":
            return (
                f"query: no column `{missing}` in {', '.join(tables)}; name the experiment with the option "
                "`--experiment NAME`, which limits the tables to its rows."
            )
        columns = {column for frame in frames.values() for column in frame.collect_schema().names()}
        lister = f"DESCRIBE {tables[0]}" if len(tables) == 1 else "DESCRIBE TABLE"
        return f"query: no column `{missing}` in {', '.join(tables)}{nearest(missing, columns, lister)}"
    return f"query: {message.removeprefix('sql parser error: ').rstrip('.')}; it is read as Polars SQL."


def describe(store: Store, experiment: str | None = None) -> list[list[str]]:
    """(table, column, type, description) of every column of every table.

    The type is that which Polars gives the column, and the description that of the Parquet metadata.
    """
    catalog = Catalog(store, experiment)
    rows = [[ARTIFACTS, name, str(kind), text] for name, (kind, text) in ARTIFACT_COLUMNS.items()]
    for name, artifacts in sorted(catalog.artifacts.items()):
        texts = {**NAME_COLUMNS, **KEY_COLUMNS}
        for artifact in artifacts:
            texts |= artifact.sentences(name)
        for column, kind in catalog.scan(name).collect_schema().items():
            rows.append([name, column, str(kind), texts[column]])
    return rows
