from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import tables
from storage.artifacts import Store
from storage.errors import UserError
from storage.keys import artifact_key
from storage.tables import Column, TableSchema

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
            path = tables.write(builder, SCHEMA, {"thing": [part], "note": [None]}, part=part)
            builder.ledger.record(part, [path])
    else:
        tables.write(builder, SCHEMA, {"thing": range(size), "note": ["x"] * size})
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


def test_scan_reads_all_artifacts_or_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = commit(store, 3), commit(store, 2, parts=True)
    assert tables.scan("things", store).collect().height == 5
    assert tables.scan("things", tmp_path, artifact=second[:8]).collect()["thing"].to_list() == [0, 1]
    assert tables.of(store.at("make", first), "things").collect().height == 3


def test_scan_uses_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(Store(tmp_path), 1)
    monkeypatch.setenv("PATCHSAE_STORE", str(tmp_path))
    assert tables.scan("things").collect().height == 1


def test_an_unknown_table_names_those_there_are(tmp_path: Path) -> None:
    commit(Store(tmp_path), 1)
    with pytest.raises(UserError, match=r"no table `thongs`.*things"):
        tables.scan("thongs", tmp_path)


def test_columns_must_match_the_schema(tmp_path: Path) -> None:
    builder = Store(tmp_path).begin(Store(tmp_path).at("make", "0" * 64))
    with pytest.raises(ValueError, match="note"):
        tables.write(builder, SCHEMA, {"thing": [1]})


def test_the_same_values_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = Store(tmp_path / "one"), Store(tmp_path / "two")
    paths = [store.at("make", commit(store, 3)).path / "tables" / "things.parquet" for store in (one, two)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
