"""SIGKILL before some durable writes of a stage, then the same again: the result is that of an uninterrupted run.

`tests/faults` does it before every write of a smaller experiment."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from patchsae.pipeline.experiment.experiment import parse
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store
from tests.support.small_run import (
    ADAPTED,
    ADAPTED_ADDRESSES,
    ADDRESSES,
    EXPERIMENT,
    SWEEP,
    SWEEP_ADDRESS,
    start,
)


def only_artifact(store: Store, stage: str) -> Artifact:
    artifacts = store.committed(stage)
    assert len(artifacts) == 1
    return artifacts[0]


def n_writes(store: Store, done: Store, stage: str, checkpoint: Path, address: str, experiment: str) -> int:
    """How many durable writes a stage takes from the start."""
    shutil.copytree(done.root, store.root)
    store.discard(only_artifact(store, stage))
    marker = store.root.with_name("counting")
    start(store, checkpoint, address, marker, experiment).join()
    return int(marker.read_text())


def kills(n_writes: int) -> list[int]:
    """Before which of its own writes each run dies, so that all of them together stay short of the end."""
    assert n_writes >= 2
    return (
        [max(1, n_writes // 4), max(1, n_writes // 5), max(1, n_writes // 6)]
        if n_writes > 8
        else [n_writes - 1]
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [*ADDRESSES, *ADAPTED_ADDRESSES])
def test_killed_and_run_again_is_byte_identical(
    stage: str, request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    is_adapted = stage in ADAPTED_ADDRESSES
    done: Store = request.getfixturevalue("adapted_store" if is_adapted else "small_store")
    address = ADAPTED_ADDRESSES[stage] if is_adapted else ADDRESSES[stage]
    experiment = ADAPTED if is_adapted else EXPERIMENT
    expected = only_artifact(done, stage)
    store = Store(tmp_path / "a store")
    shutil.copytree(done.root, store.root)
    store.discard(only_artifact(store, stage))
    counted = Store(tmp_path / "counted")
    for at in kills(n_writes(counted, done, stage, tiny_checkpoint, address, experiment)):
        process = start(store, tiny_checkpoint, address, tmp_path / "marker", experiment, at=at)
        process.join()
        assert process.exitcode == -signal.SIGKILL, at
        assert not list(store.root.glob(f"{stage}/*/manifest.json")) or store.committed(stage)
    process = start(store, tiny_checkpoint, address, tmp_path / "marker", experiment)
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


@pytest.mark.slow
def test_a_killed_sweep_ends_as_its_members_do_alone(
    small_store: Store, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    alone, store = Store(tmp_path / "alone"), Store(tmp_path / "a store")
    for copy in (alone, store):
        for stage in ("index", "weights", "extract"):
            shutil.copytree(small_store.root / stage, copy.root / stage)
    nodes = parse(SWEEP.format(checkpoint=str(tiny_checkpoint)), "small").nodes()
    members = [node.address for node in nodes if node.stage.name == "train"]
    for address in members:
        process = start(alone, tiny_checkpoint, address, tmp_path / "marker", SWEEP, members=1)
        process.join()
        assert process.exitcode == 0
    expected = {a.key: a for a in alone.committed("train")}
    assert len(expected) == len(members) == 3
    # Each run goes on where the one before was killed: after so many of its own writes.
    for at in (5, 9, 14, 6):
        process = start(store, tiny_checkpoint, SWEEP_ADDRESS, tmp_path / "marker", SWEEP, at=at)
        process.join()
        assert process.exitcode == -signal.SIGKILL, at
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
