"""Ctrl-C inside a stage: it ends at once, and the next run does what was left and ends in the same bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patchsae.pipeline.core.prefetch import thread_pool
from patchsae.pipeline.core.progress import Bar, Reporter
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store
from tests.support.small_run import ADDRESSES, EXPERIMENT

RUNTIME = Runtime()


class Watching(Reporter):
    """Notes what bars were shown, and asks the process to end at the given sight of one of the main bar."""

    def __init__(self, label: str, at: int = 0) -> None:
        self.label, self.at = label, at
        self.seen: list[tuple[int, float]] = []

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        watching = self

        class Watched(Bar):
            def _show(self) -> None:
                watching.seen.append((self.done, self.share))
                if len(watching.seen) == watching.at:
                    os.kill(os.getpid(), signal.SIGINT)

        yield (Watched if label == watching.label else Bar)(label, total, unit, done)


def outputs_of(artifact: Artifact) -> dict[str, bytes]:
    return {one.path: (artifact.path / one.path).read_bytes() for one in artifact.manifest.outputs}


@pytest.mark.parametrize(
    "stage", ["index", "extract", "statistics", "reconstruction", "masking", "remapping", "gallery"]
)
def test_an_interrupted_stage_is_continued(
    stage: str, small_store: Store, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some images at a time, so that a part has several blocks.
    for module in (
        "kinds.statistics",
        "kinds.reconstruction",
        "kinds.matching",
        "masking.worker",
        "remapping.worker",
        "gallery.worker",
    ):
        monkeypatch.setattr(f"patchsae.pipeline.evaluations.{module}.images_per_block", lambda *_: 16)
    monkeypatch.setattr("patchsae.storage.activations._CHUNK_BYTES", 17 * 32 * 2 * 40)
    monkeypatch.setattr("patchsae.pipeline.images.index._IMAGES_PER_PART", 200)
    store = Store(shutil.copytree(small_store.root, tmp_path / "store"))
    experiment = parse(EXPERIMENT.format(checkpoint=str(tiny_checkpoint)), "small")
    only = [ADDRESSES[stage]]

    def again(reporter: Reporter) -> Artifact:
        run(work_on(store, experiment, only), replace(RUNTIME, reporter=reporter))
        [found] = store.committed(stage)
        return found

    [before] = store.committed(stage)
    store.discard(before)
    whole = Watching(ADDRESSES[stage])
    expected = outputs_of(again(whole))
    assert len(whole.seen) > 8
    store.discard(before)
    # Inside a part, when some parts are done.
    at = len(whole.seen) * 3 // 4
    with pytest.raises(KeyboardInterrupt):
        again(interrupted := Watching(ADDRESSES[stage], at))
    assert len(interrupted.seen) == at and not store.committed(stage)
    rest = Watching(ADDRESSES[stage])
    assert outputs_of(again(rest)) == expected
    assert len(rest.seen) < len(whole.seen), "finished parts were computed again"


def test_a_bar_shows_how_far_the_present_unit_is() -> None:
    bar = Bar("statistics", 4, "parts", 1)
    bar.within(3, 12, "images")
    assert (bar.done, bar.share, bar.note) == (1, 0.25, "+ 3/12 images")
    bar.within(12, 12, "images")
    bar.advance()
    assert (bar.done, bar.share, bar.note) == (2, 0.0, "")
    assert list(bar.over("ab")) == ["a", "b"] and bar.done == 4


def test_an_interrupt_waits_only_for_the_tasks_that_have_begun() -> None:
    """A part of an index has a thousand images, which were all read before Ctrl-C ended the process."""
    begun, may_end = threading.Semaphore(0), threading.Event()
    n_read = 0

    def read(_: Any) -> None:
        nonlocal n_read
        n_read += 1
        begun.release()
        may_end.wait(60)
        time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt), thread_pool(2, "test") as pool:
        found = pool.map(read, range(1000))
        begun.acquire(timeout=60)
        may_end.set()
        raise KeyboardInterrupt
    assert n_read < 500
    assert found is not None
