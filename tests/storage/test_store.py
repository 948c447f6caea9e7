"""What holds of a store that several processes use: rebuilds, readers, deletion, links, records, a full disk."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from patchsae.pipeline.experiment.unneeded import delete_unneeded, unneeded
from patchsae.storage import atomic, files
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.atomic import exchange, explaining_full_disk, write_atomic
from patchsae.storage.errors import UserError
from patchsae.storage.keys import artifact_key, digest_bytes
from patchsae.storage.locks import Busy, lock, refuse
from patchsae.storage.manifest import Manifest
from patchsae.storage.records import ExperimentRecord, RecordedNode
from patchsae.storage.store import Store

CONFIG = {"size": 3}
KEY = artifact_key("make", 1, CONFIG, {})


def commit(store: Store, data: bytes = b"result", again: bool = False) -> Artifact:
    artifact = store.at("make", KEY)
    with store.building(artifact):
        builder = store.begin(artifact, again)
        builder.write("out.bin", data)
        return store.commit(builder, 1, CONFIG, {}, {}, {})


def names(store: Store) -> list[str]:
    return sorted(path.relative_to(store.root).as_posix() for path in (store.root / "make").rglob("*"))


def test_a_rebuild_takes_the_place_of_the_old_one(store: Store) -> None:
    old = commit(store)
    before = names(store)
    assert old.read("out.bin") == b"result"
    new = commit(store, b"others", again=True)
    assert new.read("out.bin") == b"others"
    assert names(store) == before
    with pytest.raises(UserError, match="built again since it was opened"):
        old.read("out.bin")


def test_an_unfinished_rebuild_leaves_the_old_one_and_goes_on(store: Store) -> None:
    old = commit(store)
    builder = store.begin(old, again=True)
    builder.write("part", b"part")
    builder.ledger.record(0, [builder.outputs["part"]])
    assert store.at("make", KEY).read("out.bin") == b"result"
    assert [state for _, state in store.artifacts()] == ["committed"]
    assert store.begin(old, again=True).ledger.missing(2) == [1]
    [left] = store.leftovers(old)
    assert left.what == "unfinished rebuild" and left.n_bytes() > 4
    store.settle(old)
    assert store.rebuild_of(old).path.exists(), "it is not finished, and may go on"


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("dies_before", range(6))
def test_a_kill_while_a_rebuild_takes_its_place(
    store: Store, monkeypatch: pytest.MonkeyPatch, at_once: bool, dies_before: int
) -> None:
    """Whichever of the renames and removals was the last one, the next process ends with the new artifact."""
    old = commit(store)
    builder = store.begin(old, again=True)
    builder.write("out.bin", b"others")
    count = iter(range(100))

    class Killed(BaseException):
        pass

    def dying(act):  # type: ignore[no-untyped-def]
        def acted(*arguments):  # type: ignore[no-untyped-def]
            if next(count) == dies_before:
                raise Killed
            return act(*arguments)

        return acted

    with monkeypatch.context() as patch:
        if not at_once:
            patch.setattr(atomic, "_exchange_at_once", lambda first, second: False)
        else:
            patch.setattr(atomic, "_exchange_at_once", dying(atomic._exchange_at_once))
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr("patchsae.storage.store.remove", dying(atomic.remove))
        try:
            store.commit(builder, 1, CONFIG, {}, {}, {})
        except Killed:
            killed = True
        else:
            killed = False
    assert killed or dies_before > 3
    store.settle(old)
    assert store.at("make", KEY).read("out.bin") == b"others"
    assert [path.name for path in (store.root / "make").iterdir()] == [KEY[:16]]
    assert sorted(path.name for path in old.path.iterdir()) == ["manifest.json", "out.bin"]


def test_two_folders_change_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()
    monkeypatch.setattr(atomic, "_exchange_at_once", lambda first, second: False)
    exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "a").exists() and (tmp_path / "b" / "b").exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_read_is_neither_replaced_nor_deleted(store: Store) -> None:
    artifact = commit(store)
    with store.reading([artifact]), store.reading([artifact]):
        with pytest.raises(Busy):
            store.discard(artifact, refuse)
        builder = store.begin(artifact, again=True)
        builder.write("out.bin", b"others")
        with pytest.raises(Busy):
            store.commit(builder, 1, CONFIG, {}, {}, {}, refuse)
        (artifact.path / "out.bin").write_bytes(b"cut")
        with pytest.raises(Busy):
            store.begin(artifact, on_wait=refuse)
        assert artifact.is_committed
    store.settle(artifact)
    assert store.at("make", KEY).read("out.bin") == b"others"


def _hold_and_delete(path: Path) -> None:
    with lock(path):
        (path.parent / "held").touch()
        time.sleep(0.5)
        path.unlink()


def test_a_lock_that_was_deleted_keeps_nobody_together(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    process = multiprocessing.get_context("spawn").Process(target=_hold_and_delete, args=(path,))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with lock(path):
        assert path.exists(), "the lock is on a file that others see"
        with pytest.raises(Busy), lock(path, refuse):
            pass
    process.join()


def test_hundreds_of_inputs_are_held_at_once(store: Store) -> None:
    """A frontier compares hundreds of SAEs, and many systems let a process open 256 or 1,024 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with store.reading(store.at("make", f"{i:064x}") for i in range(0, 700 << 192, 1 << 192)):
            assert len(list((store.root / "locks").iterdir())) == 700
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("linked", ["artifact", "folder"])
def test_nothing_is_written_through_a_link(store: Store, tmp_path: Path, linked: str) -> None:
    artifact = commit(store)
    path = {"artifact": artifact.path, "folder": artifact.path / "tables"}[linked]
    elsewhere = tmp_path / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.mkdir()
    path.symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    for act in (store.begin, store.discard):
        with pytest.raises(UserError, match="is a link"):
            act(artifact)
    assert sorted(elsewhere.rglob("*")) == before and elsewhere.exists()


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "tables/../../x.parquet", ""])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(store: Store, name: str) -> None:
    artifact = commit(store)
    manifest = artifact.manifest
    record = files.FileRecord(name, 1, digest_bytes(b"x"))
    forged = Manifest.model_validate({**manifest.model_dump(), "outputs": [vars(record)]}).sealed()
    (artifact.path / "manifest.json").write_text(forged.model_dump_json())
    with pytest.raises(UserError, match="outside the artifact's folder"):
        _ = store.at("make", KEY).manifest
    assert [state for _, state in store.artifacts()] == ["damaged"]


def test_a_ledger_that_names_a_file_elsewhere_is_no_ledger(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"mine")
    builder = store.begin(store.at("make", KEY))
    builder.ledger.record(0, [files.FileRecord("../../../secret", 4, digest_bytes(b"mine"))])
    assert builder.ledger.missing(1) == [0] == builder.ledger.drop_unsound(1)
    assert store.begin(store.at("make", KEY)).ledger.parts() == []
    assert (tmp_path / "secret").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[]",
        b"null",
        b'{"key": NaN}',
        b'{"key": "\\ud800"}',
        b"",
    ],
)
def test_whatever_stands_in_a_manifest_is_one_sentence(store: Store, data: bytes) -> None:
    artifact = commit(store)
    (artifact.path / "manifest.json").write_bytes(data)
    with pytest.raises(UserError, match=r"manifest\.json"):
        _ = store.at("make", KEY).manifest
    assert [state for _, state in store.artifacts()] == ["damaged"]
    (artifact.path / "ledger").mkdir()
    (artifact.path / "ledger" / "part-000000.json").write_bytes(data)
    assert artifact.ledger.missing(1) == [0] and artifact.ledger.n_done() == 0
    (store.root / "experiments").mkdir()
    (store.root / "experiments" / "one.json").write_bytes(data)
    assert store.records.all() == {}
    assert "one.json" in store.records.faults()[0][1]


def test_a_file_is_compared_with_its_digest_once_per_process(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = commit(store)
    record = artifact.manifest.outputs[0]
    reads: list[Path] = []
    digest = files.digest_file
    monkeypatch.setattr(files, "digest_file", lambda path: (reads.append(path), digest(path))[1])
    for _ in range(3):
        record.check(artifact.path)
    assert len(reads) == 1
    path = artifact.path / "out.bin"
    path.write_bytes(b"resulT")
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="not what was written"):
        record.check(artifact.path)


EXPERIMENT_A, EXPERIMENT_B = {"name": "one", "size": 1}, {"name": "one", "size": 2}


def record(stage: str, experiment: dict[str, object]) -> ExperimentRecord:
    return ExperimentRecord({f"{stage}/x": RecordedNode(stage, "0" * 64)}, experiment)


def test_records_of_one_name_are_told_apart_by_content(store: Store) -> None:
    first, second = record("a", EXPERIMENT_A), record("b", EXPERIMENT_B)
    store.records.write("one", first, newest=True)
    store.records.write("one", second, newest=True)
    known = store.records.all()
    assert known["one"] == second
    [other] = set(known) - {"one"}
    assert other.startswith("one-") and known[other] == first
    # The first run goes on, and writes what it has reached.
    further = record("c", EXPERIMENT_A)
    store.records.write("one", further, newest=False)
    assert store.records.all() == {"one": second, other: further}
    assert store.records.of("one", record("", EXPERIMENT_A)) == further
    # It is started anew: now it is the newest of its name.
    store.records.write("one", first, newest=True)
    known = store.records.all()
    assert known["one"] == first and len(known) == 2 and second in known.values()


def test_a_record_of_an_old_store_keeps_what_it_protects(store: Store) -> None:
    """It does not say which experiment it is of, so it may be of another one."""
    old = {"index/x": ["index", "0" * 64]}
    write_atomic(store.root / "experiments" / "one.json", json.dumps(old).encode())
    assert list(store.records.all()) == ["one"]
    store.records.write("one", record("a", EXPERIMENT_A), newest=True)
    known = store.records.all()
    assert known.pop("one") == record("a", EXPERIMENT_A)
    [(earlier, kept)] = known.items()
    assert earlier.startswith("one-") and kept.nodes["index/x"].key == "0" * 64
    assert list(store.records.current()) == ["one"]


@pytest.mark.parametrize("in_the_way", ["file", "link", "no nodes", "a number", "no name"])
def test_gc_deletes_nothing_unless_it_knows_all_records(store: Store, in_the_way: str) -> None:
    commit(store)
    store.records.write("one", record("a", EXPERIMENT_A), newest=True)
    folder = store.root / "experiments"
    node = {"stage": "make", "key": KEY, "names": {}, "inputs": {}}
    match in_the_way:
        case "file" | "link":
            (folder / "one.json").unlink()
            folder.rmdir()
            folder.touch() if in_the_way == "file" else folder.symlink_to(store.root / "nowhere")
        case "no nodes":
            (folder / "one.json").write_text('{"nodes": {}, "experiment": null}')
        case "a number":
            (folder / "one.json").write_text(
                json.dumps({"nodes": {"x": {**node, "key": 5}}, "experiment": None})
            )
        case _:
            (folder / "one.json").write_text("{}")
    with pytest.raises(UserError, match="Nothing is deleted"):
        delete_unneeded(store)
    assert store.is_usable("make", KEY)


def test_gc_takes_no_folder_for_an_artifact_that_is_none(store: Store, tmp_path: Path) -> None:
    kept = [store.root / "plots" / "my-sixteen-chars", store.root / "plots" / "0123456789abcde"]
    for folder in kept:
        folder.mkdir(parents=True)
    outside = tmp_path / "photos" / "0123456789abcdef"
    outside.mkdir(parents=True)
    (store.root / "photos").symlink_to(tmp_path / "photos")
    with pytest.raises(UserError, match="is a link"):
        delete_unneeded(store)
    (store.root / "photos").unlink()
    assert delete_unneeded(store) == ([], [])
    assert outside.exists() and all(folder.exists() for folder in kept)


def test_gc_deletes_a_rebuild_whose_artifact_is_gone(store: Store) -> None:
    artifact = commit(store)
    store.begin(artifact, again=True).write("out.bin", b"x" * 10)
    shutil.rmtree(artifact.path)
    assert [item.state for item in unneeded(store)] == ["unfinished rebuild"]
    delete_unneeded(store)
    assert list((store.root / "make").iterdir()) == []


def test_what_is_done_is_gone_on_with_only_for_the_same_inputs(store: Store) -> None:
    def begin(content: str) -> Builder:
        builder = store.begin(store.at("make", KEY))
        builder.resume_from({"sae": content})
        return builder

    builder = begin("a")
    builder.ledger.record(0, [builder.scratch.write_part(0, {"x": np.zeros(3)})])
    builder.checkpoints.save(1, {"x": np.zeros(3)}, {})
    assert begin("a").ledger.missing(1) == []
    again = begin("b")
    assert again.ledger.missing(1) == [0] and again.checkpoints.latest() is None
    again.ledger.record(0, [again.scratch.write_part(0, {"x": np.zeros(3)})])
    shared = next(again.path.glob("parts/shared-inputs*"))
    shared.write_bytes(b"damaged")
    assert begin("b").ledger.missing(1) == [0]


def test_any_flipped_bit_of_a_record_is_noticed(store: Store) -> None:
    store.records.write("one", record("a", EXPERIMENT_A), newest=True)
    path = store.root / "experiments" / "one.json"
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert store.records.all() == {}, bytes(flipped)
    path.write_bytes(data)
    assert store.records.all() == {"one": record("a", EXPERIMENT_A)}


def test_a_running_experiment_is_not_forgotten(store: Store) -> None:
    first = record("a", EXPERIMENT_A)
    store.records.write("one", first, newest=True)
    with store.records.running(first), pytest.raises(UserError, match="is running"):
        store.records.forget("one")
    store.records.forget("one")
    with pytest.raises(UserError, match="no recorded run `one`"):
        store.records.forget("one")


def test_gc_deletes_what_killed_runs_left(store: Store) -> None:
    artifact = commit(store)
    store.records.write(
        "one", ExperimentRecord({"make/x": RecordedNode("make", KEY)}, EXPERIMENT_A), newest=True
    )
    builder = store.begin(artifact, again=True)
    builder.write("out.bin", b"x" * 1000)
    (artifact.path / "parts").mkdir()
    (artifact.path / "parts" / "part-000000.safetensors").write_bytes(b"x" * 100)
    (artifact.path / "ledger").mkdir()
    (store.root / "experiments" / ".one.json.17.tmp").write_bytes(b"half")
    (store.root / "locks" / "train-0000000000000000.lock").touch()
    found = {item.state: item.n_bytes for item in unneeded(store)}
    assert found == {"unfinished rebuild": 1000, "scratch of a finished artifact": 100}
    deleted, busy = delete_unneeded(store)
    assert len(deleted) == 2 and not busy
    assert sorted(path.name for path in artifact.path.iterdir()) == ["manifest.json", "out.bin"]
    assert [path.name for path in (store.root / "make").iterdir()] == [artifact.path.name]
    assert [path.name for path in (store.root / "experiments").iterdir()] == ["one.json"]
    assert not list((store.root / "locks").glob("train-*"))
    assert unneeded(store) == []


def test_gc_refuses_while_a_record_cannot_be_read(store: Store) -> None:
    commit(store)
    write_atomic(store.root / "experiments" / "one.json", b"\xff")
    with pytest.raises(UserError, match=r"one\.json: is not readable"):
        delete_unneeded(store)
    assert store.is_usable("make", KEY)


def test_full_inodes_are_called_full_inodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.statvfs(tmp_path)

    class Full:
        f_files, f_favail = plain.f_files, 0

    for disk, said in ((Full(), "no inodes left"), (plain, "is full")):
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda _, disk=disk: disk)
            with pytest.raises(UserError, match=said), explaining_full_disk(tmp_path / "not there yet"):
                raise OSError(28, "No space left on device")


def test_what_is_in_the_place_of_a_file_is_replaced(store: Store, tmp_path: Path) -> None:
    artifact = commit(store)
    store.drop(artifact)
    secret = tmp_path / "secret"
    secret.write_bytes(b"mine")
    for make in (
        Path.mkdir,
        lambda path: path.symlink_to(secret),
        lambda path: path.symlink_to(tmp_path / "no"),
    ):
        (artifact.path / "out.bin").unlink()
        make(artifact.path / "out.bin")
        store.begin(artifact).write("out.bin", b"result")
        assert (artifact.path / "out.bin").read_bytes() == b"result"
    assert secret.read_bytes() == b"mine"


def test_what_is_in_the_place_of_a_folder_or_a_lock_is_one_sentence(store: Store) -> None:
    builder = store.begin(store.at("make", KEY))
    (builder.path / "tables").write_bytes(b"")
    with pytest.raises(UserError, match="tables: is no folder"):
        builder.write("tables/x.parquet", b"result")
    (store.root / "locks" / "x.lock").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be locked"), lock(store.root / "locks" / "x.lock"):
        pass
