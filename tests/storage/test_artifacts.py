from __future__ import annotations

import errno
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from patchsae.storage.artifacts import Artifact
from patchsae.storage.atomic import explaining_full_disk, write_atomic
from patchsae.storage.errors import UserError
from patchsae.storage.files import FileRecord
from patchsae.storage.keys import artifact_key
from patchsae.storage.locks import lock
from patchsae.storage.store import Store

CONFIG = {"size": 3}
KEY = artifact_key("make", 1, CONFIG, {})


def commit(store: Store, data: bytes = b"result") -> Artifact:
    artifact = store.at("make", KEY)
    with store.building(artifact):
        builder = store.begin(artifact)
        builder.write("out.bin", data)
        return store.commit(builder, 1, CONFIG, {}, {"n": 3}, {"host": "here"})


def test_without_a_manifest_an_artifact_does_not_exist(tmp_path: Path) -> None:
    store = Store(tmp_path)
    builder = store.begin(store.at("make", KEY))
    builder.write("out.bin", b"result")
    assert not store.is_usable("make", KEY)
    assert [state for _, state in store.artifacts()] == ["partial"]
    with pytest.raises(UserError, match="no finished artifact"):
        _ = store.at("make", KEY).manifest


def test_a_committed_artifact_is_found_and_checked(tmp_path: Path) -> None:
    store = Store(tmp_path / "a store")
    commit(store)
    manifest = store.at("make", KEY).manifest
    assert manifest.summary == {"n": 3}
    assert [(o.path, o.bytes) for o in manifest.outputs] == [("out.bin", 6)]
    assert store.is_usable("make", KEY)
    assert store.at("make", KEY).damaged_files() == []


def test_a_number_that_is_not_defined_is_null_in_the_summary(store: Store) -> None:
    builder = store.begin(store.at("make", KEY))
    summary = {"share": float("nan"), "n": 3, "largest": float("inf"), "name": "nan"}
    artifact = store.commit(builder, 1, CONFIG, {}, summary, {})
    assert artifact.manifest.summary == {"share": None, "n": 3, "largest": None, "name": "nan"}


@pytest.mark.parametrize("field", ["summary", "config", "key"])
def test_a_manifest_edited_by_hand_is_refused(tmp_path: Path, field: str) -> None:
    store = Store(tmp_path)
    path = commit(store).path / "manifest.json"
    body = json.loads(path.read_text())
    body[field] = "0" * 64 if field == "key" else {"size": 4}
    path.write_text(json.dumps(body))
    assert not store.is_usable("make", KEY)
    with pytest.raises(UserError, match="edited or damaged"):
        _ = store.at("make", KEY).manifest


def test_a_manifest_of_another_key_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ours = commit(store).path
    other = store.at("make", artifact_key("make", 1, {"size": 4}, {}))
    ours.rename(other.path)
    with pytest.raises(UserError, match="belongs to the key"):
        _ = other.manifest


def test_a_truncated_output_makes_the_artifact_unusable(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = commit(store).path / "out.bin"
    path.write_bytes(b"res")
    fault = store.at("make", KEY).fault()
    assert fault is not None
    assert "out.bin" in fault
    assert [state for _, state in store.artifacts()] == ["damaged"]


def test_a_flipped_byte_is_named_by_damaged_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (commit(store).path / "out.bin").write_bytes(b"resulT")
    assert store.is_usable("make", KEY)
    assert store.at("make", KEY).damaged_files() == ["out.bin"]


def test_ledger_counts_only_whole_parts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    builder = store.begin(store.at("make", KEY))
    for part in range(3):
        path = builder.path / f"part-{part}"
        path.write_bytes(bytes(10))
        builder.ledger.record(part, [FileRecord.of_bytes(path.name, bytes(10))], {"n": part})
    assert builder.ledger.missing(4) == [3]
    assert builder.ledger.values(2) == {"n": 2}
    (builder.path / "part-1").write_bytes(bytes(9))
    assert builder.ledger.missing(4) == [1, 3]
    entry = builder.path / "ledger" / "part-000002.json"
    entry.write_text(entry.read_text().replace('"n":2', '"n":3'))
    assert builder.ledger.missing(4) == [1, 2, 3]
    builder.ledger.forget(["part-0"])
    assert builder.ledger.missing(4) == [0, 1, 2, 3]


def test_parts_are_outputs_and_scratch_is_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    builder = store.begin(store.at("make", KEY))
    for part, name in enumerate(("data-0", "parts/scratch-1")):
        path = builder.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
        builder.ledger.record(part, [FileRecord.of_bytes(name, b"x")])
    artifact = store.commit(builder, 1, CONFIG, {}, {}, {})
    assert [output.path for output in artifact.manifest.outputs] == ["data-0"]
    assert not (artifact.path / "parts").exists()


def test_write_atomic_leaves_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match="the disk is full"), explaining_full_disk(tmp_path):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_other_errors_of_the_system_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), explaining_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")


def _hold(path: Path, seconds: float) -> None:
    with lock(path):
        (path.parent / "held").touch()
        time.sleep(seconds)


def test_a_lock_waits_for_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    holder = context.Process(target=_hold, args=(tmp_path / "lock", 600))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    waited: list[bool] = []

    def waiting() -> None:
        waited.append(True)
        holder.kill()

    with lock(tmp_path / "lock", waiting):
        pass
    assert waited == [True]
    holder.join()


def test_a_store_must_be_a_local_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only local folders"):
        Store("s3://bucket/store")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        Store(tmp_path / "file")
    assert Store(f"file://{tmp_path}").root == tmp_path
