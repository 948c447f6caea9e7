"""The fence around GPUs, with devices that are not there: who waits, for whom, and who does not."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from patchsae.pipeline.core import devices
from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.devices import devices_of, fence, name_of
from patchsae.pipeline.core.execute import Assignment, execute
from patchsae.pipeline.core.machine import figures_file
from patchsae.pipeline.core.stage import Runtime, Stage
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store

Hold = Callable[..., int]


def _hold(names: list[str], work: str, ready: multiprocessing.synchronize.Event) -> None:
    with fence(names, work, lambda other: None):
        ready.set()
        signal.pause()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Starts a process that holds devices; returns its id when it does."""
    context = multiprocessing.get_context("fork")
    started = []

    def start(*names: str, work: str = "train/a of photos") -> int:
        ready = context.Event()
        process = context.Process(target=_hold, args=(list(names), work, ready), daemon=True)
        process.start()
        started.append(process)
        assert ready.wait(60)
        assert process.pid is not None
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_device_is_used_by_one_process_until_that_is_killed(hold: Hold) -> None:
    pid, said = hold("GPU-a/0", "GPU-b"), []

    def waiting(other: str) -> None:
        said.append(other)
        os.kill(pid, signal.SIGKILL)

    with fence(["GPU-c"], "train/b of demo", lambda other: pytest.fail(other)):
        pass
    with fence(["GPU-c", "GPU-a/0"], "train/b of demo", waiting):
        pass
    [text] = said
    assert text.startswith(f"GPU-a/0, where process {pid} on ") and text.endswith(
        "computes train/a of photos"
    )


class Nothing(Config):
    """A config without fields."""


class Fake(Runtime):
    """A runtime that says it is on a GPU."""

    def describe(self) -> dict[str, object]:
        return {"device": self.device}


def work(uses_gpu: bool = True) -> Assignment:
    stage = Stage(
        name="train",
        version=1,
        section="saes",
        uses_gpu=uses_gpu,
        run=lambda config, inputs, out, runtime: {},
    )
    return Assignment(stage, "train/b", Nothing(), {}, {}, "0" * 64, experiment="demo")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(devices, "name_of", lambda index: f"GPU-{index}")


@pytest.mark.usefixtures("gpus")
def test_a_stage_waits_for_the_run_on_its_device_and_says_so(
    store: Store, hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    pid = hold("GPU-1")

    class Kill(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            os.kill(pid, signal.SIGKILL)

    logger, kill = logging.getLogger("patchsae"), Kill(logging.WARNING)
    logger.addHandler(kill)
    try:
        [artifact] = execute(store, [work()], Fake(device="cuda:1"))
    finally:
        logger.removeHandler(kill)
    assert artifact.is_committed
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(f"train/b: waits for GPU-1, where process {pid} on ")
    assert line.endswith("computes train/a of photos.")


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("device", "uses_gpu"), [("cpu", True), ("cuda:0", True), ("cuda", True), ("cuda:1", False)]
)
def test_others_do_not_wait(store: Store, hold: Hold, device: str, uses_gpu: bool) -> None:
    hold("GPU-1")
    [artifact] = execute(store, [work(uses_gpu)], Fake(device=device))
    assert artifact.is_committed


@pytest.mark.usefixtures("gpus")
def test_several_processes_take_the_devices_of_all() -> None:
    assert devices_of(Runtime(device="cuda", processes=3)) == ["GPU-0", "GPU-1", "GPU-2"]
    assert devices_of(Runtime(device="cpu", processes=3)) == []


def test_a_device_has_the_same_name_for_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid="1-2"))
    assert name_of(1) == "GPU-1-2"
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 7")
    seen_as_second = name_of(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert name_of(0) == seen_as_second
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert name_of(7) == seen_as_second


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", _no_home)
    with (
        pytest.raises(UserError, match=r"GPU-0 cannot be kept .*HOME is not set.*Set XDG_CACHE_HOME"),
        fence(["GPU-0"], "train/a", print),
    ):
        pass
    # Without a file, speeds are measured and not remembered.
    assert figures_file() is None


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_place_that_has_no_locks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with (
        pytest.raises(UserError, match=r"GPU-0 cannot be kept .*file/patchsae.*Set XDG_CACHE_HOME"),
        fence(["GPU-0"], "train/a", print),
    ):
        pass
