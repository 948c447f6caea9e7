"""Typed tables in Parquet, which stages write: schemas with a sentence per column, and the writer.

The files are plain Parquet (`pl.scan_parquet` reads them). The sentences are stored in the metadata of the
Arrow fields under `description`. Every table has a column `artifact` with the key of its artifact.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FOLDER = "tables"


@dataclass(frozen=True)
class Column:
    """A column of a table; `description` is one sentence with its unit and formula."""

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False


@dataclass(frozen=True)
class TableSchema:
    """A table's name and columns. The writer adds the column `artifact`.

    Parquet files are read in groups of `rows_per_group` rows. A table that is sorted by what it is asked for has small
    ones, so that little is read for a few rows.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    rows_per_group: int = 1 << 18

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
    """`values` (column -> values) as an Arrow table of `schema`, with the column `artifact` set to `key`.

    Raises ValueError if a column is missing or unknown.
    """
    names = [column.name for column in schema.columns]
    if set(values) != set(names):
        raise ValueError(f"table {schema.name}: columns {sorted(set(values) ^ set(names))} do not match")
    arrow = schema.arrow()
    arrays = [pa.array(values[name], type=arrow.field(name).type) for name in names]
    n_rows = len(arrays[0])
    dictionary = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n_rows, np.int32)), pa.array([key]))
    return pa.Table.from_arrays([*arrays, dictionary], schema=arrow)


def file_name(schema: TableSchema, part: int | None = None) -> str:
    """The file of a table, or of its part `part`, relative to the artifact."""
    if part is None:
        return f"{FOLDER}/{schema.name}.parquet"
    return f"{FOLDER}/{schema.name}/part-{part:06d}.parquet"


def table_of(output: str) -> str | None:
    """The name of the table that a file of an artifact belongs to, or None if it belongs to none.

    `output` is relative to the artifact.
    """
    head, _, rest = output.partition("/")
    return rest.split("/")[0].removesuffix(".parquet") if head == FOLDER else None


def encode(schema: TableSchema, values: Values, key: str) -> bytes:
    """A table of the artifact `key` as the bytes of a Parquet file."""
    out = pa.BufferOutputStream()
    pq.write_table(
        to_arrow(schema, values, key), out, compression="zstd", row_group_size=schema.rows_per_group
    )
    return bytes(out.getvalue())


def expected_bytes(schema: TableSchema, n_rows: float, bytes_per_row: float) -> int:
    """About the size of the file of a table: that of one without rows, and what its rows add."""
    return _empty_bytes(schema) + round(n_rows * bytes_per_row)


@functools.lru_cache(maxsize=64)
def _empty_bytes(schema: TableSchema) -> int:
    return len(encode(schema, {column.name: [] for column in schema.columns}, ""))


def sentences(path: Path) -> dict[str, str]:
    """Column -> its sentence, of every column of a Parquet file, from its metadata."""
    return {
        field.name: (field.metadata or {}).get(b"description", b"").decode() for field in pq.read_schema(path)
    }
