"""A query reads the tables of the store alone, however it is written, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from patchsae.flows.cli.app import app
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.results.sql import execute
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_file
from patchsae.storage.store import Store

DIGITS = """
name: digits
datasets: {digits: {kind: digits, n_images: 40}}
backbones: {clip: {kind: shapes_clip}}
"""
READERS = {
    "read_csv": "CSV",
    "read_parquet": "Parquet",
    "read_ipc": "IPC",
    "read_json": "NDJSON",
    "read_ndjson": "NDJSON",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Read only."""
    store = Store(tmp_path_factory.mktemp("digits") / "store")
    run(work_on(store, parse(DIGITS, "digits"), only=["index"]), Runtime())
    return store


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    """Files that are not of the store, in the working directory."""
    monkeypatch.chdir(tmp_path)
    secret = pl.DataFrame({"a": [1, 2]})
    secret.write_csv("f.csv")
    secret.write_parquet("f.parquet")
    secret.write_ipc("f.ipc")
    secret.write_ndjson("f.ndjson")
    return secret


SPELLINGS = [
    "SELECT * FROM {name}({file})",
    "SELECT * FROM {upper} ({file})",
    "SELECT * FROM \"{name}\"({file})",
    "SELECT * FROM `{name}`\n({file})",
    "SELECT * FROM '{name}'({file})",
    "SELECT * FROM '{upper}' /* x */ ({file})",
    "SELECT * FROM {name}/* x */({file})",
    "SELECT * FROM {name} -- x\n({file})",
    "SELECT * FROM {name}\u00a0({file})",
    "FROM {name}({file})",
    "SELECT * FROM (SELECT * FROM {name}({file})) AS q",
    "WITH q AS (SELECT * FROM {name}({file})) SELECT * FROM q",
    "SELECT * FROM images WHERE image IN (SELECT a FROM {name}({file}))",
    "SELECT images.image FROM images JOIN {name}({file}) AS f ON images.image = f.a",
    "SELECT images.image FROM images, {name}({file}) AS f",
    "SELECT image FROM images UNION ALL SELECT a AS image FROM {name}({file})",
    "CREATE TABLE stolen AS SELECT * FROM {name}({file})",
    "EXPLAIN SELECT * FROM {name}({file})",
    # Where a text ends differently than it seems.
    "SELECT 'a\\' AS q, * FROM {name}({file}) -- '",
    "SELECT $$'$$ AS q, * FROM {name}({file}) -- '",
    "SELECT '''' AS q, * FROM {name}({file})",
    "SELECT X'41' AS q, * FROM {name}({file})",
    "SELECT /* /* */ ' */ 1 AS q, * FROM {name}({file}) -- '",
    "SELECT 1 AS q, \"'\" FROM {name}({file}) AS f (\"'\")",
    "SELECT -- '\n * FROM {name}({file}) -- '",
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_functions_that_read_files_are_refused_however_they_are_written(
    spelling: str, store: Store, outside: pl.DataFrame
) -> None:
    query = spelling.format(name="read_csv", upper="READ_CSV", file="'f.csv'")
    with pytest.raises(
        UserError,
        match=r"^query: `(?i:read_csv)` reads files, and a query can read only the tables of the store",
    ) as caught:
        execute(store, query)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_every_function_of_polars_that_reads_files_is_refused(
    name: str, store: Store, outside: pl.DataFrame
) -> None:
    ending = {"IPC": "ipc", "NDJSON": "ndjson", "CSV": "csv", "Parquet": "parquet"}[READERS[name]]
    query = f"SELECT * FROM {name}('f.{ending}')"
    # That this is a function of Polars is what makes the refusal matter.
    assert pl.SQLContext().execute(query, eager=True).equals(outside)
    with pytest.raises(UserError, match=f"`{name}` reads files"):
        execute(store, query)
    with pytest.raises(UserError, match=f"`{name}` reads files"):
        execute(store, f"SELECT * FROM {name}('https://patchsae.invalid/f.{ending}')")


OTHERS = [
    *(f"SELECT * FROM {name}('f.csv')" for name in (
        "scan_csv", "scan_parquet", "csv_scan", "parquet_scan", "iceberg_scan", "delta_scan", "glob", "csv",
        "parquet", "file", "url", "s3", "infile", "sniff_csv", "openrowset", "x.read_csv_auto", "load_csv",
    )),
    "SELECT * FROM 'f.parquet'",
    'SELECT * FROM "f.parquet"',
    "SELECT * FROM f.parquet",
    "TABLE 'f.parquet'",
    "SELECT * FROM IDENTIFIER('f.parquet')",
    "SELECT * FROM OPENJSON('f.ndjson')",
    "SELECT * FROM JSON_TABLE('f.ndjson', '$' COLUMNS(a INT PATH '$'))",
    "CREATE EXTERNAL TABLE stolen (a INT) STORED AS PARQUET LOCATION 'f.parquet'",
    "CREATE TABLE stolen (a INT) LOCATION 'f.parquet'",
    "COPY images FROM 'f.csv'",
    "COPY images TO 'written.csv'",
    "SELECT * INTO written FROM images",
    "INSERT INTO images SELECT * FROM images",
    "UPDATE images SET image = 0",
    "ATTACH 'f.parquet' AS stolen",
    "LOAD 'f.parquet'",
    "SELECT 1 AS q; SELECT * FROM images",
]  # fmt: skip


@pytest.mark.parametrize("query", OTHERS)
def test_polars_has_no_other_way_to_a_file(query: str, store: Store, outside: pl.DataFrame) -> None:
    """If a later version of Polars has one, this says so."""
    before = sorted(path.name for path in Path().iterdir())
    with pytest.raises(UserError, match=r"^query: "):
        execute(store, query)
    assert sorted(path.name for path in Path().iterdir()) == before


def test_a_text_is_no_function_where_other_words_follow(outside: pl.DataFrame) -> None:
    """`_CALLED_TEXT` relies on it: between the name of a function and its `(` stands nothing else."""
    for between in (
        "AS f",
        "PARTITION (p)",
        "WITH (NOLOCK)",
        "FOR SYSTEM_TIME AS OF 1",
        "TABLESAMPLE (1)",
        "f",
    ):
        with pytest.raises(pl.exceptions.PolarsError):
            pl.SQLContext().execute(f"SELECT * FROM 'read_csv' {between} ('f.csv')", eager=True)


HONEST = [
    "SELECT count(*) AS n FROM images WHERE class_name != 'read_csv('",
    "SELECT count(*) AS n FROM images WHERE class_name != 'read_csv' AND (label >= 0)",
    "SELECT count(*) AS n FROM images WHERE class_name NOT IN ('read_parquet', 'it''s read_csv(''x'')')",
    "SELECT count(*) AS n FROM images -- not read_csv('f.csv')",
    "SELECT /* FROM read_csv('f.csv') */ count(*) AS n FROM images",
    "SELECT count(*) AS n\r\nFROM images -- read_csv(\r\nWHERE label >= 0",
    'SELECT count(*) AS "n" FROM "images" WHERE `label` >= 0 AND class_name <> \'read_ipc(\'',
    "SELECT count(*) AS n FROM images WHERE source <> 'C:\\x' AND class_name <> $$'$$",
    "SELECT count(*) AS n FROM images AS thread_count",
]


@pytest.mark.parametrize("query", HONEST)
def test_texts_and_comments_may_name_anything(query: str, store: Store) -> None:
    assert execute(store, query)["n"].item() == 40


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE images",
        "TRUNCATE TABLE images",
        "DELETE FROM images",
        "DELETE FROM images WHERE label = 0",
        "CREATE TABLE copy AS SELECT * FROM images",
        "CREATE TABLE copy LIKE images",
    ],
)
def test_no_statement_changes_the_store(statement: str, store: Store) -> None:
    def content() -> dict[Path, str]:
        return {path: digest_file(path) for path in store.root.rglob("*") if path.is_file()}

    before = content()
    execute(store, statement)
    assert content() == before
    assert execute(store, "SELECT * FROM images").height == 40


def test_the_command_line_says_it_in_one_line(store: Store, outside: pl.DataFrame) -> None:
    done = CliRunner().invoke(app, ["query", "SELECT * FROM read_csv('f.csv')", "--store", str(store.root)])
    assert done.exit_code == 2
    assert "`read_csv` reads files" in done.stderr and "Traceback" not in done.stderr
