"""SIGKILL at random instants, then the same command again: the result is that of an uninterrupted run."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from small_run import ADDRESSES, SWEEP, SWEEP_ADDRESS, start

from pipeline.dag import build
from pipeline.experiment import parse
from storage.artifacts import Artifact, Store

N_KILLS = 4


def only_artifact(store: Store, stage: str) -> Artifact:
    artifacts = store.committed(stage)
    assert len(artifacts) == 1
    return artifacts[0]


@pytest.mark.parametrize("stage", ADDRESSES)
def test_killed_and_run_again_is_byte_identical(
    stage: str, small_store: Store, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    expected = only_artifact(small_store, stage)
    store = Store(tmp_path / "a store")
    shutil.copytree(small_store.root, store.root)
    store.discard(only_artifact(store, stage))
    rng = random.Random(stage)
    seconds = expected.manifest.provenance["seconds"]
    n_killed = 0
    for _ in range(N_KILLS):
        process = start(store, tiny_checkpoint, ADDRESSES[stage], tmp_path / "marker")
        time.sleep(rng.uniform(0.02, 0.9) * seconds)
        process.kill()
        process.join()
        n_killed += process.exitcode == -signal.SIGKILL
        assert not list(store.root.glob(f"{stage}/*/manifest.json")) or store.committed(stage)
    assert n_killed
    process = start(store, tiny_checkpoint, ADDRESSES[stage], tmp_path / "marker")
    process.join()
    assert process.exitcode == 0
    found = only_artifact(store, stage)
    assert found.key == expected.key
    assert found.manifest.outputs == expected.manifest.outputs
    assert found.manifest.summary == expected.manifest.summary
    assert found.damaged_files() == []
    names = {path.relative_to(expected.path) for path in expected.path.rglob("*") if path.is_file()}
    assert {path.relative_to(found.path) for path in found.path.rglob("*") if path.is_file()} == names
    for name in names - {Path("manifest.json")}:
        assert (found.path / name).read_bytes() == (expected.path / name).read_bytes(), name


def test_a_killed_sweep_ends_as_its_members_do_alone(
    small_store: Store, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    alone, store = Store(tmp_path / "alone"), Store(tmp_path / "a store")
    for copy in (alone, store):
        for stage in ("index", "weights", "extract"):
            shutil.copytree(small_store.root / stage, copy.root / stage)
    nodes = build(parse(SWEEP.format(checkpoint=str(tiny_checkpoint)), "small"))
    members = [node.address for node in nodes if node.stage.name == "train"]
    for address in members:
        process = start(alone, tiny_checkpoint, address, tmp_path / "marker", SWEEP, members=1)
        process.join()
        assert process.exitcode == 0
    expected = {a.key: a for a in alone.committed("train")}
    assert len(expected) == len(members) == 3
    seconds = sum(a.manifest.provenance["seconds"] for a in expected.values())
    rng = random.Random(0)
    n_killed = 0
    for _ in range(N_KILLS):
        process = start(store, tiny_checkpoint, SWEEP_ADDRESS, tmp_path / "marker", SWEEP)
        time.sleep(rng.uniform(0.02, 0.9) * seconds)
        process.kill()
        process.join()
        n_killed += process.exitcode == -signal.SIGKILL
    assert n_killed
    process = start(store, tiny_checkpoint, SWEEP_ADDRESS, tmp_path / "marker", SWEEP)
    process.join()
    assert process.exitcode == 0
    found = {a.key: a for a in store.committed("train")}
    assert {key: a.manifest.outputs for key, a in found.items()} == {
        key: a.manifest.outputs for key, a in expected.items()
    }
    assert not any(a.damaged_files() for a in found.values())


def test_of_two_runs_at_once_the_second_waits_and_uses_the_result(
    small_store: Store, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    expected = only_artifact(small_store, "train")
    store = Store(tmp_path / "store")
    shutil.copytree(small_store.root, store.root)
    store.discard(only_artifact(store, "train"))
    processes = [
        start(store, tiny_checkpoint, ADDRESSES["train"], tmp_path / f"marker {i}") for i in range(2)
    ]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert only_artifact(store, "train").manifest.outputs == expected.manifest.outputs
