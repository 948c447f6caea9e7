"""The explorer beside runs: it changes nothing, sees what is new, and names what is damaged or gone."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from starlette.testclient import TestClient

from patchsae.explorer.library import Library
from patchsae.explorer.resources import routes
from patchsae.pipeline.training.metrics import TRAINING
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import Damaged
from patchsae.storage.keys import artifact_key
from patchsae.storage.records import ExperimentRecord, RecordedNode
from patchsae.storage.store import Store
from tests.explorer.conftest import Open


@pytest.fixture
def own(small_store: Store, tmp_path: Path) -> Store:
    """A copy of the small store, to change."""
    return Store(shutil.copytree(small_store.root, tmp_path / "own"))


def paths_of(library: Library) -> Iterator[str]:
    """A path for every resource that a small store has."""
    [view] = library.views()
    home = routes.answer(library, "home")
    yield from ("home", "tables", f"view/{view.key}", f"classes/{view.key}", f"class/{view.key}/3")
    yield from (f"latents/{view.key}/rows", f"latents/{view.key}/column/frequency", f"latent/{view.key}/5")
    for one in home["saes"]:
        yield f"training/{one['key']}"
    for one in home["comparisons"]:
        yield f"{one['kind']}/{one['key']}"
        yield f"{one['kind']}/{one['key']}/{'rows' if one['kind'] == 'matching' else 'class/0'}"


def state_of(root: Path) -> dict[str, Any]:
    """Every path of a store with its size, its times and the digest of its content."""
    return {
        str(path.relative_to(root)): (
            path.stat().st_size,
            path.stat().st_mtime_ns,
            path.stat().st_mode,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in sorted(root.rglob("*"))
    }


def test_no_resource_changes_the_store(own: Store, explore: Open) -> None:
    before, client = state_of(own.root), explore(own)
    paths = list(paths_of(Library(own)))
    for path in paths:
        assert client.get(f"/api/{path}").status_code == 200, path
    assert client.get("/api/sql", params={"q": "SELECT COUNT(*) AS n FROM latents"}).status_code == 200
    assert len(paths) > 10 and state_of(own.root) == before


READING = """
import os, sys
from pathlib import Path
from patchsae.explorer.library import Library
from patchsae.explorer.resources import routes
from patchsae.storage.store import Store

root, *paths = sys.argv[1:]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")

def refuse(event, arguments):
    is_change = event in CHANGING or (event == "open" and (arguments[2] or 0) & WRITING)
    if is_change and str(arguments[0]).startswith(root):
        raise PermissionError(f"{event} {arguments}")

sys.addaudithook(refuse)
for path in paths:
    routes.answer(Library(Store(root)), path)
try:
    Path(root, "x").touch()
except PermissionError:
    print("guarded", *(name for name in ("torch", "zarr", "prefect", "open_clip", "sklearn") if name in sys.modules))
"""


def test_nothing_is_opened_for_writing_and_nothing_heavy_is_loaded(own: Store) -> None:
    command = [sys.executable, "-c", READING, str(own.root), *paths_of(Library(own))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "guarded\n", done.stderr


def test_a_rebuild_does_not_wait_for_the_explorer(own: Store, explore: Open) -> None:
    client, [statistics] = explore(own), own.committed("statistics")
    client.get(f"/api/latent/{statistics.key[:16]}/5")

    def waits() -> None:
        pytest.fail("the explorer holds a lock")

    with own.building(statistics, waits), own.changing(statistics, waits):
        assert client.get(f"/api/latent/{statistics.key[:16]}/6").status_code == 200


def test_what_a_run_adds_is_there_at_the_next_request(own: Store, explore: Open, small_store: Store) -> None:
    [statistics] = own.committed("statistics")
    kept = own.root.parent / "kept"
    statistics.path.rename(kept)
    client = explore(own)
    home = client.get("/api/home").json()
    nodes = {node["address"]: node["state"] for node in home["experiments"][0]["nodes"]}
    assert home["views"] == [] and nodes["statistics/statistics"] == "absent"
    assert "statistics" in home["advice"]
    kept.rename(statistics.path)
    assert len(client.get("/api/home").json()["views"]) == 1
    record = ExperimentRecord({"train/x": RecordedNode("train", "0" * 64, {"sae": "x"})}, {"name": "later"})
    own.records.write("later", record, newest=True)
    assert {one["name"] for one in client.get("/api/home").json()["experiments"]} == {"small", "later"}


def test_an_artifact_that_gc_deletes_gets_a_sentence(own: Store, explore: Open) -> None:
    client, [statistics] = explore(own), own.committed("statistics")
    path = f"/api/latent/{statistics.key[:16]}/5"
    assert client.get(path).status_code == 200
    with own.building(statistics):
        own.discard(statistics)
    answered = client.get(path)
    assert answered.status_code == 404 and "may have been deleted" in answered.json()["error"]
    assert client.get("/api/home").status_code == 200


def test_a_view_whose_images_were_deleted_shows_what_is_left(own: Store, explore: Open) -> None:
    [statistics], [index] = own.committed("statistics"), own.committed("index")
    with own.building(index):
        own.discard(index)
    client, view = explore(own), statistics.key[:16]
    for path in (
        f"view/{view}",
        f"classes/{view}",
        f"latents/{view}/rows",
        f"latent/{view}/5",
        f"class/{view}/1",
    ):
        assert client.get(f"/api/{path}").status_code == 200, path
    assert client.get(f"/api/latent/{view}/5").json()["top"][0]["source"] is None


@pytest.mark.parametrize("how", ["truncated", "changed", "manifest"])
def test_a_damaged_artifact_is_named_with_the_remedy_and_the_rest_is_shown(
    own: Store, explore: Open, how: str
) -> None:
    [statistics], [sae] = own.committed("statistics"), own.committed("train")
    file = statistics.path / ("manifest.json" if how == "manifest" else "tables/latents.parquet")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data[:-5] if how == "truncated" else data)
    client, view = explore(own), statistics.key[:16]
    answered = client.get(f"/api/latents/{view}/rows")
    assert answered.status_code == 409
    remedy = "run its experiment again" if how == "truncated" else "verify --discard"
    assert str(file) in answered.json()["error"] and remedy in answered.json()["error"]
    home = client.get("/api/home").json()
    nodes = {node["address"]: node["state"] for node in home["experiments"][0]["nodes"]}
    assert nodes["train/relu"] == "committed"
    if how != "changed":
        # Only a file that is read can be found to hold other bytes of the same number.
        assert nodes["statistics/statistics"] == "damaged"
        assert any(str(file) in sentence for sentence in home["problems"])
    assert client.get(f"/api/training/{sae.key[:16]}").status_code == 200


def test_a_record_that_cannot_be_read_is_named(own: Store, explore: Open) -> None:
    (own.root / "experiments" / "broken.json").write_text("{")
    home = explore(own).get("/api/home").json()
    assert any("broken.json" in sentence for sentence in home["problems"]) and len(home["views"]) == 1


@pytest.mark.parametrize("kind", ["absent", "empty"])
def test_a_store_that_is_not_there_or_empty_says_what_to_run(
    kind: str, tmp_path: Path, explore: Open
) -> None:
    root = tmp_path / "none"
    if kind == "empty":
        root.mkdir()
    home = explore(Store(root)).get("/api/home").json()
    assert f"patchsae demo --store {root}" in home["advice"]
    assert home["views"] == home["experiments"] == [] and root.exists() == (kind == "empty")


def _training(store: Store, n_steps: int) -> Artifact:
    """An SAE that is being trained: a table of the steps so far, and no manifest."""
    artifact = store.at("train", artifact_key("train", 5, {"n": 1}, {}))
    builder = store.begin(artifact)
    columns = {c.name: [float(i) for i in range(n_steps)] for c in TRAINING.columns}
    builder.write_table(
        TRAINING, {**columns, "step": range(n_steps), "n_tokens": range(n_steps), "n_dead": range(n_steps)}
    )
    return artifact


def test_an_sae_in_training_shows_its_curve_and_that_it_runs(own: Store, explore: Open) -> None:
    client, artifact = explore(own), _training(own, 5)
    key = artifact.key[:16]
    node = RecordedNode("train", artifact.key, {"sae": "new", "dataset": "digits", "backbone": "tiny"})
    own.records.write("more", ExperimentRecord({"train/new": node}, {"name": "more"}), newest=True)
    with own.building(artifact):
        found = client.get(f"/api/training/{key}").json()
        assert found["running"] and found["name"] == "new" and found["columns"]["step"] == [0, 1, 2, 3, 4]
        [sae] = [one for one in client.get("/api/home").json()["saes"] if one["key"] == key]
        assert sae["training"] and sae["n_latents"] is None
        _training(own, 7)
        assert len(client.get(f"/api/training/{key}").json()["columns"]["step"]) == 7
    assert not client.get(f"/api/training/{key}").json()["running"]


def test_a_long_curve_is_thinned_and_keeps_its_ends(own: Store, explore: Open) -> None:
    artifact = _training(own, 2503)
    steps = explore(own).get(f"/api/training/{artifact.key[:16]}").json()["columns"]["step"]
    assert 500 < len(steps) <= 1000 and steps[0] == 0 and steps[-1] == 2502
    assert len(set(pl.Series(steps).diff().drop_nulls()[:-1])) == 1


def test_unchanged_resources_are_not_sent_again(own: Store, explore: Open) -> None:
    client, [statistics] = explore(own), own.committed("statistics")
    path = f"/api/latent/{statistics.key[:16]}/5"
    first = client.get(path)
    again = client.get(path, headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content
    own.records.write(
        "more", ExperimentRecord({"train/x": RecordedNode("train", "0" * 64)}, None), newest=True
    )
    assert client.get(path, headers={"if-none-match": first.headers["etag"]}).status_code == 200


def test_a_manifest_is_read_once_as_long_as_it_stays(own: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(own)
    before = library.snapshot()
    looked = []
    monkeypatch.setattr(Artifact, "fault", lambda self: looked.append(self.path))
    own.records.write(
        "more", ExperimentRecord({"train/x": RecordedNode("train", "0" * 64)}, None), newest=True
    )
    assert library.snapshot() is not before and looked == []


def test_a_damaged_sae_is_an_error_of_its_own(own: Store) -> None:
    [sae] = own.committed("train")
    (sae.path / "sae.safetensors").write_bytes(b"")
    with pytest.raises(Damaged, match="missing or truncated"):
        Library(own).sae(sae.key[:16])


def test_what_the_client_gets_is_compressed(own: Store, explore: Open) -> None:
    client: TestClient = explore(own)
    answered = client.get("/api/home", headers={"accept-encoding": "gzip"})
    assert answered.headers["content-encoding"] == "gzip"
