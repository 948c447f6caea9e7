"""SIGKILL before every single durable write of a small experiment, then the same again: the store of a run that was
never interrupted, to the byte."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from patchsae.storage.store import Store
from tests.support.crash import crash

N_GROUPS = 6


def content(store: Store) -> dict[str, bytes]:
    """Every file of the store but locks and manifests, which say when and how long."""
    return {
        path.relative_to(store.root).as_posix(): path.read_bytes()
        for path in store.root.rglob("*")
        if path.is_file() and path.parent.name != "locks" and path.name != "manifest.json"
    }


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> tuple[Store, int]:
    """The experiment run without interruption, and how many durable writes it takes."""
    folder = tmp_path_factory.mktemp("whole")
    store = Store(folder / "store")
    assert crash(store, tiny_checkpoint, 0, folder / "n") == 0
    return store, int((folder / "n").read_text())


def check(whole: tuple[Store, int], checkpoint: Path, folder: Path, at: int) -> None:
    expected, _ = whole
    store = Store(folder / f"at {at}")
    assert crash(store, checkpoint, at, folder / "n") == -signal.SIGKILL
    # What is committed is whole, at any instant.
    assert not [artifact for artifact, state in store.artifacts() if state == "damaged"], at
    assert crash(store, checkpoint, 0, folder / "n") == 0, at
    found, wanted = content(store), content(expected)
    assert found.keys() == wanted.keys(), at
    assert [name for name in wanted if found[name] != wanted[name]] == [], at
    for artifact in expected.committed():
        again = store.at(artifact.stage, artifact.key).manifest
        assert (again.outputs, again.summary) == (artifact.manifest.outputs, artifact.manifest.summary), at


def test_some_writes(whole: tuple[Store, int], tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A spread over the whole experiment; the test below does all of them."""
    n_writes = whole[1]
    assert n_writes > 100
    for at in range(3, n_writes, n_writes // 6):
        check(whole, tiny_checkpoint, tmp_path, at)


@pytest.mark.slow
@pytest.mark.parametrize("group", range(N_GROUPS))
def test_every_write(group: int, whole: tuple[Store, int], tiny_checkpoint: Path, tmp_path: Path) -> None:
    for at in range(1 + group, whole[1] + 1, N_GROUPS):
        check(whole, tiny_checkpoint, tmp_path, at)
