"""SQL on the page Tables: its answers, its bounds, and what it must not reach."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from starlette.testclient import TestClient

from patchsae.explorer import queries
from patchsae.explorer.queries import Queries
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.explorer.conftest import Open


@pytest.fixture(scope="module")
def asking(small_store: Store) -> Iterator[Queries]:
    opened = Queries(small_store.root)
    yield opened
    opened.close()


def test_a_query_has_its_rows_types_and_number(asking: Queries, small_store: Store) -> None:
    found = asking.run("SELECT latent, frequency FROM latents ORDER BY latent", None, "json").header
    [statistics] = small_store.committed("statistics")
    expected = statistics.scan("latents").select("latent", "frequency").collect()
    assert found["columns"] == ["latent", "frequency"] and found["types"] == ["Int32", "Float64"]
    assert [tuple(row) for row in found["rows"]] == expected.rows()
    assert found["n_rows"] == 512 and not found["truncated"]


def test_at_most_a_thousand_rows_are_shown_of_the_number_that_there_are(asking: Queries) -> None:
    found = asking.run("SELECT * FROM latent_images", None, "json").header
    assert len(found["rows"]) == 1000 < found["n_rows"] and found["truncated"]


def test_values_that_json_does_not_have_are_null_or_texts(asking: Queries) -> None:
    sql = "SELECT CAST('nan' AS DOUBLE) AS a, CAST('inf' AS DOUBLE) AS b, names, NULL AS d FROM artifacts LIMIT 1"
    found = asking.run(sql, None, "json").header
    [[a, b, names, d]] = found["rows"]
    assert (a, b, d) == (None, None, None) and isinstance(names, list)


def test_a_query_is_downloaded_as_csv_and_as_parquet(asking: Queries) -> None:
    sql = "SELECT stage, names FROM artifacts ORDER BY stage"
    csv = pl.read_csv(io.BytesIO(asking.run(sql, None, "csv").data))
    parquet = pl.read_parquet(io.BytesIO(asking.run(sql, None, "parquet").data))
    assert csv["stage"].to_list() == parquet["stage"].to_list() != []
    assert [json.loads(one) for one in csv["names"]] == parquet["names"].to_list()


def test_a_cross_join_is_ended_and_the_next_query_is_answered(asking: Queries) -> None:
    endless = "SELECT SUM(a.rank * b.rank) FROM latent_images a CROSS JOIN latent_images b CROSS JOIN latent_images c"
    asking.run("SELECT 1", None, "json")
    process = asking._process
    assert process is not None
    with pytest.raises(UserError, match=r"took longer than 0\.5 s"):
        asking.run(endless, None, "json", seconds=0.5)
    assert process.poll() is not None
    assert asking.run("SELECT 1 AS one", None, "json").header["rows"] == [[1]]


def test_a_query_that_takes_too_much_memory_is_ended(
    asking: Queries, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking.run("SELECT 1", None, "json")
    monkeypatch.setattr(queries, "MAX_BYTES", 10_000_000)
    with pytest.raises(UserError, match="GB of memory"):
        asking.run("SELECT 1", None, "json")


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT nothing FROM latents", "no column `nothing`"),
        ("SELECT * FROM nothing", "no table `nothing`"),
        ("SELEC", "query:"),
        ("SELECT * FROM read_csv('/etc/passwd')", "reads files"),
        ("SELECT * FROM '/etc/passwd'", "query:"),
        ("CREATE TABLE x AS SELECT * FROM READ_PARQUET('/x')", "reads files"),
    ],
)
def test_a_wrong_query_gets_a_sentence(asking: Queries, sql: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        asking.run(sql, None, "json")
    assert "\n" not in str(caught.value)


def test_the_process_ends_with_its_server(small_store: Store) -> None:
    code = (
        "import sys; from pathlib import Path; from patchsae.explorer.queries import Queries; import os\n"
        "print(Queries(Path(sys.argv[1]))._running().pid, flush=True); os._exit(0)"
    )
    command = [sys.executable, "-c", code, str(small_store.root)]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    until = time.monotonic() + 60
    while _lives(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_the_server_answers_sql_and_downloads(explore: Open, small_store: Store) -> None:
    client: TestClient = explore(small_store)
    found = client.get("/api/sql", params={"q": "SELECT COUNT(*) AS n FROM latents"}).json()
    assert found["rows"] == [[512]] and "bytes" not in found
    download = client.get("/sql.csv", params={"q": "SELECT latent FROM latents", "experiment": "small"})
    assert download.headers["content-disposition"].startswith("attachment")
    assert len(download.text.splitlines()) == 513
    wrong = client.get("/sql.parquet", params={"q": ""})
    assert wrong.status_code == 400 and "is empty" in wrong.json()["error"]
    wrong = client.get("/api/sql", params={"q": "SELECT 1", "experiment": "other"})
    assert wrong.status_code == 400 and "no experiment `other`" in wrong.json()["error"]
