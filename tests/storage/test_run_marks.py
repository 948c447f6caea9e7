"""The marks of runs: a live run is never taken for dead, and a killed one is found."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from patchsae.storage import run_marks
from patchsae.storage.run_marks import SECONDS_OF_SILENCE, Abandoned, RunMarks
from patchsae.storage.store import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "locks"


def found(folder: Path, done: bool = True) -> list[Abandoned]:
    dead: list[Abandoned] = []

    def handle(one: Abandoned) -> bool:
        dead.append(one)
        return done

    RunMarks(folder).bury(handle)
    return dead


def _live(folder: Path, name: str, ready: multiprocessing.synchronize.Event) -> None:
    with RunMarks(folder).alive(name) as mark:
        mark.note(leases=["one", "two"])
        mark.note(leases=["one"])
        ready.set()
        signal.pause()


def live(folder: Path, name: str) -> multiprocessing.process.BaseProcess:
    """A process that lives as the run `name`."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_live, args=(folder, name, ready), daemon=True)
    process.start()
    assert ready.wait(60)
    return process


def kill(process: multiprocessing.process.BaseProcess) -> None:
    process.kill()
    process.join()


def test_a_killed_run_is_found_once_and_a_live_one_never(folder: Path) -> None:
    killed, alive = live(folder, "killed"), live(folder, "alive")
    assert found(folder) == []
    kill(killed)
    [dead] = found(folder)
    assert dead.name == "killed" and dead.content["leases"] == ["one"] and dead.content["pid"] == killed.pid
    assert found(folder) == []
    kill(alive)
    assert [one.name for one in found(folder, done=False)] == ["alive"]
    assert [one.name for one in found(folder)] == ["alive"], "it was not done the first time"


def test_a_run_that_ends_leaves_nothing(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RunMarks(folder).alive("run"):
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == [] == found(folder)


def test_a_run_of_another_machine_is_dead_when_it_is_silent_and_not_locked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, alive = live(folder, "killed"), live(folder, "alive")
    kill(killed)
    monkeypatch.setattr(run_marks, "this_machine", lambda: "another")
    # Its locks may not be seen from here.
    assert found(folder) == []
    for path in folder.iterdir():
        long_ago = path.stat().st_mtime - SECONDS_OF_SILENCE - 1
        os.utime(path, (long_ago, long_ago))
    assert [one.name for one in found(folder)] == ["killed"]
    kill(alive)


def test_a_live_run_touches_its_mark(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_marks, "_SECONDS_BETWEEN_TOUCHES", 0.01)
    with RunMarks(folder).alive("run") as mark:
        os.utime(mark.path, (0, 0))
        while mark.path.stat().st_mtime == 0:
            pass


def test_an_empty_file_is_not_a_run(folder: Path) -> None:
    # What `lock` makes where a run has just removed its mark.
    folder.mkdir()
    (folder / "ended.run").touch()
    assert found(folder) == [] and list(folder.iterdir()) == []


def test_gc_keeps_the_marks_of_the_dead(store: Store) -> None:
    kill(live(store.root / "locks", "killed"))
    with store.records.held():
        store.sweep()
    dead = []
    store.run_marks.bury(lambda one: bool(dead.append(one)))
    assert [one.name for one in dead] == ["killed"]
