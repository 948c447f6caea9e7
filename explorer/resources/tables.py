"""`tables` and `sql`: the tables of the store with a sentence per column, and the rows of a query."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from patchsae.explorer.library import Library
from patchsae.pipeline.results.sql import describe, execute
from patchsae.storage.errors import StoreWarning, UserError

MOST_ROWS = 1000


def tables(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """Every table of the store, with its columns."""
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
    query = arguments.get("q", "").strip()
    if not query:
        raise UserError("query: is empty; write one, such as `SELECT * FROM latents LIMIT 10`.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)
        frame = execute(library.store, query, arguments.get("experiment") or None)
    return {
        "columns": frame.columns,
        "types": [str(kind) for kind in frame.dtypes],
        "rows": frame.head(MOST_ROWS).rows(),
        "n_rows": len(frame),
        "truncated": len(frame) > MOST_ROWS,
    }
