"""Typed tables in Parquet: a schema with a sentence per column, a writer, and lazy scans over a store.

Files are plain Parquet (`pl.scan_parquet` reads them); the sentences are in the Arrow field metadata under
`description`, units and formulas included. Every table carries the key of its artifact.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifacts import Artifact, Builder, Store
from storage.atomic import sync_file
from storage.errors import UserError

FOLDER = "tables"


@dataclass(frozen=True)
class Column:
    """A column: name, Arrow type, and one sentence with units and formula."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False


@dataclass(frozen=True)
class TableSchema:
    """A table's name and columns. `artifact` is added by the writer."""

    name: str
    description: str
    columns: tuple[Column, ...]

    def arrow(self) -> pa.Schema:
        own = [
            pa.field(c.name, c.type, nullable=c.nullable, metadata={"description": c.description})
            for c in self.columns
        ]
        key = pa.field(
            "artifact",
            pa.dictionary(pa.int32(), pa.string()),
            nullable=False,
            metadata={"description": "Key of the artifact this row came from."},
        )
        return pa.schema([*own, key], metadata={"table": self.name, "description": self.description})


Values = Mapping[str, np.ndarray | Sequence[Any] | pa.Array]


def to_arrow(schema: TableSchema, values: Values, key: str) -> pa.Table:
    """Columns as an Arrow table of `schema`. Raises ValueError on a missing or unknown column."""
    names = [column.name for column in schema.columns]
    if set(values) != set(names):
        raise ValueError(f"table {schema.name}: columns {sorted(set(values) ^ set(names))} do not match")
    arrow = schema.arrow()
    arrays = [pa.array(values[name], type=arrow.field(name).type) for name in names]
    n_rows = len(arrays[0])
    dictionary = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n_rows, np.int32)), pa.array([key]))
    return pa.Table.from_arrays([*arrays, dictionary], schema=arrow)


def write(builder: Builder, schema: TableSchema, values: Values, part: int | None = None) -> Path:
    """Writes a table of an artifact: whole, or the part numbered `part`. Declares the file if whole.

    Returns the file, already on the disk for good. Written beside its name and renamed.
    """
    folder = builder.path / FOLDER
    path = folder / f"{schema.name}.parquet"
    if part is not None:
        path = folder / schema.name / f"part-{part:06d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    table = to_arrow(schema, values, builder.key)
    try:
        pq.write_table(table, temporary, compression="zstd", row_group_size=1 << 18)
        sync_file(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_file(path.parent)
    if part is None:
        builder.add(path)
    return path


def _files(artifact: Artifact, name: str) -> list[Path]:
    prefixes = (f"{FOLDER}/{name}.parquet", f"{FOLDER}/{name}/")
    return [artifact.path / o.path for o in artifact.manifest.outputs if o.path.startswith(prefixes)]


def of(artifact: Artifact, name: str) -> pl.LazyFrame:
    """One table of one artifact, parts in order. Raises UserError if the artifact has no such table."""
    files = _files(artifact, name)
    if not files:
        raise UserError(f"{artifact.path}: has no table `{name}`.")
    return pl.scan_parquet(files)


def columns(path: Path) -> list[tuple[str, str, str]]:
    """(name, type, sentence) of every column of a table's file, from its Parquet metadata."""
    return [
        (field.name, str(field.type), (field.metadata or {}).get(b"description", b"").decode())
        for field in pq.read_schema(path)
    ]


def names(store: Store) -> dict[str, list[Path]]:
    """Every table of the committed artifacts: name -> files."""
    found: dict[str, list[Path]] = {}
    for artifact in store.committed():
        for output in artifact.manifest.outputs:
            head, _, rest = output.path.partition("/")
            if head == FOLDER:
                found.setdefault(rest.split("/")[0].removesuffix(".parquet"), []).append(
                    artifact.path / output.path
                )
    return found


def scan(
    name: str, store: Store | str | os.PathLike[str] | None = None, artifact: str | None = None
) -> pl.LazyFrame:
    """The table `name` over every committed artifact of a store, as a lazy frame.

    `store` defaults to `PATCHSAE_STORE`, or `./store`. `artifact` (a key, or its beginning) keeps one
    artifact's rows. Raises UserError, naming the tables there are, if there is none of that name.
    """
    opened = (
        store if isinstance(store, Store) else Store(store or os.environ.get("PATCHSAE_STORE", "./store"))
    )
    tables = names(opened)
    if name not in tables:
        known = ", ".join(sorted(tables)) or "none yet: run an experiment first"
        raise UserError(f"{opened.root}: no table `{name}` in this store (tables: {known}).")
    frame = pl.concat([pl.scan_parquet(path) for path in tables[name]], how="diagonal_relaxed")
    frame = frame.with_columns(pl.col("artifact").cast(pl.String))
    return frame.filter(pl.col("artifact").str.starts_with(artifact)) if artifact else frame
