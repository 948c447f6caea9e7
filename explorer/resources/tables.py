"""`tables` and `sql`: the tables of the store with a sentence per column, and the rows of a query."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from patchsae.explorer.content import Content
from patchsae.explorer.library import Library
from patchsae.explorer.queries import Answer, Style
from patchsae.pipeline.results.sql import describe
from patchsae.storage.errors import StoreWarning, UserError


def tables(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """Every table of the store, with its columns."""
    if library.mode == "server":
        library.queries.warm_up()
    snapshot = library.snapshot()
    n_artifacts: dict[str, int] = {}
    for held in snapshot.held.values():
        if held.state == "committed":
            for name in held.artifact.table_names():
                n_artifacts[name] = n_artifacts.get(name, 0) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)
        rows = describe(library.store)
    found: dict[str, list[dict[str, str]]] = {}
    for table, column, kind, sentence in rows:
        found.setdefault(table, []).append({"name": column, "type": kind, "sentence": sentence})
    return {
        "tables": [
            {"name": name, "columns": columns, "n_artifacts": n_artifacts.get(name)}
            for name, columns in found.items()
        ]
    }


def sql(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """The first 1000 rows of a query in Polars SQL. Raises UserError if it is wrong, or reads a file."""
    header = _run(library, arguments, "json").header
    return {name: value for name, value in header.items() if name != "bytes"}


def csv(library: Library, arguments: Mapping[str, str]) -> Content:
    """The rows of a query as a file to download, at most a million."""
    data = _run(library, arguments, "csv").data
    return Content(data, "text/csv; charset=utf-8", _named("csv"))


def parquet(library: Library, arguments: Mapping[str, str]) -> Content:
    """As `csv`, with the types of the columns."""
    data = _run(library, arguments, "parquet").data
    return Content(data, "application/vnd.apache.parquet", _named("parquet"))


def _named(suffix: str) -> dict[str, str]:
    return {"content-disposition": f'attachment; filename="patchsae.{suffix}"'}


def _run(library: Library, arguments: Mapping[str, str], style: Style) -> Answer:
    query = arguments.get("q", "").strip()
    if not query:
        raise UserError("query: is empty; write one, such as `SELECT * FROM latents LIMIT 10`.")
    return library.queries.run(query, arguments.get("experiment") or None, style)
