from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchsae.storage.errors import UserError
from patchsae.storage.keys import artifact_key
from patchsae.storage.store import Store
from patchsae.storage.tables import Column, TableSchema

SCHEMA = TableSchema(
    "things",
    "Things.",
    (Column("thing", pa.int64(), "Number."), Column("note", pa.string(), "Note.", nullable=True)),
)


def commit(store: Store, size: int, parts: bool = False) -> str:
    config = {"size": size}
    key = artifact_key("make", 1, config, {})
    builder = store.begin(store.at("make", key))
    if parts:
        for part in range(2):
            builder.write_table(SCHEMA, {"thing": [part], "note": [None]}, part=part)
    else:
        builder.write_table(SCHEMA, {"thing": range(size), "note": ["x"] * size})
    store.commit(builder, 1, config, {}, {}, {})
    return key


def test_every_row_carries_its_artifact_and_every_column_a_sentence(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = commit(store, 3)
    path = store.at("make", key).path / "tables" / "things.parquet"
    assert pl.read_parquet(path)["artifact"].cast(pl.String).unique().to_list() == [key]
    schema = pq.read_schema(path)
    assert schema.metadata[b"description"] == b"Things."
    assert schema.field("thing").metadata[b"description"] == b"Number."


def test_an_artifact_reads_its_own_tables(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = commit(store, 3), commit(store, 2, parts=True)
    assert store.at("make", first).scan("things").collect().height == 3
    assert store.at("make", second).scan("things").collect()["thing"].to_list() == [0, 1]
    with pytest.raises(UserError, match=r"has no table `thongs`"):
        store.at("make", first).scan("thongs")


def test_a_table_is_written_in_row_groups_of_the_size_of_its_schema(tmp_path: Path) -> None:
    store = Store(tmp_path)
    builder = store.begin(store.at("make", artifact_key("make", 1, {}, {})))
    small = replace(SCHEMA, rows_per_group=10)
    builder.write_table(small, {"thing": range(25), "note": ["x"] * 25})
    file = pq.ParquetFile(builder.path / "tables" / "things.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [10, 10, 5]
    # The group that a row is in is found without reading the others.
    bounds = [file.metadata.row_group(i).column(0).statistics for i in range(3)]
    assert [(one.min, one.max) for one in bounds] == [(0, 9), (10, 19), (20, 24)]


def test_columns_must_match_the_schema(tmp_path: Path) -> None:
    builder = Store(tmp_path).begin(Store(tmp_path).at("make", "0" * 64))
    with pytest.raises(ValueError, match="note"):
        builder.write_table(SCHEMA, {"thing": [1]})


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    paths = [store.at("make", commit(store, 3)).path / "tables" / "things.parquet" for store in (one, two)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
