"""Training that is asked to end: it takes its step to the end, writes a checkpoint, and then obeys."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patchsae.pipeline.core.interrupts import deferred_signals
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.training import train
from patchsae.storage.checkpoints import Checkpoints
from patchsae.storage.store import Store
from tests.support import interrupted
from tests.support.interrupted import HALTS_IN_STEP, hear, say
from tests.support.sae_inputs import run
from tests.support.training_inputs import NO_STEP, bytes_of, inputs_in

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def newest_step(store: Store) -> int | None:
    [folder] = (store.root / "train").iterdir()
    return Checkpoints(folder).latest_step()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_middle_of_a_step(store: Store, number: signal.Signals) -> None:
    inputs = inputs_in(store)
    whole = run(store, train.STAGE, interrupted.config(), inputs, NO_STEP)
    expected = bytes_of(whole)
    store.discard(whole)
    process = interrupted.start(store)
    assert hear(process) == "halted"
    process.send_signal(number)
    say(process, "go")
    process.communicate()
    # It ended as processes end by this signal.
    assert process.returncode == -number
    assert newest_step(store) == HALTS_IN_STEP
    assert bytes_of(run(store, train.STAGE, interrupted.config(), inputs, NO_STEP)) == expected


def test_a_second_signal_does_not_wait_for_the_step(store: Store) -> None:
    inputs_in(store)
    process = interrupted.start(store)
    assert hear(process) == "halted"
    process.send_signal(signal.SIGINT)
    say(process, "still here")
    assert hear(process) == "still here", "the first signal was obeyed at once"
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == -signal.SIGINT
    assert newest_step(store) is None


@pytest.mark.slow
def test_ranks_end_after_the_same_step(store: Store, tmp_path: Path) -> None:
    n_steps, number = 3000, signal.SIGTERM
    inputs, config = inputs_in(store), interrupted.config(n_steps)
    process = interrupted.start(store, 2, n_steps)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("train: "):
            break
    process.send_signal(number)
    process.communicate()
    assert process.returncode == -number
    step = newest_step(store)
    assert step is not None and 0 < step < n_steps
    resumed = bytes_of(run(store, train.STAGE, config, inputs, Runtime(processes=2)))
    other = Store(tmp_path / "other")
    assert resumed == bytes_of(run(other, train.STAGE, config, inputs_in(other), Runtime(processes=2)))


class Obeyed(BaseException):
    """What a handler that the command line installed might raise."""


@pytest.fixture(params=SIGNALS)
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    before = signal.getsignal(request.param)
    yield request.param
    signal.signal(request.param, before)


def raise_obeyed(*_: Any) -> None:
    raise Obeyed


def test_the_handler_that_was_there_is_called_afterwards(number: signal.Signals) -> None:
    signal.signal(number, raise_obeyed)
    reached = False
    with pytest.raises(Obeyed), deferred_signals() as deferred:
        os.kill(os.getpid(), number)
        assert deferred.signal == number
        reached = True
    assert reached
    assert signal.getsignal(number) is raise_obeyed


def test_without_a_signal_nothing_is_left_behind(number: signal.Signals) -> None:
    signal.signal(number, raise_obeyed)
    with deferred_signals() as deferred:
        pass
    assert deferred.signal is None
    assert signal.getsignal(number) is raise_obeyed


def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with deferred_signals() as deferred:
        os.kill(os.getpid(), number)
    assert deferred.signal is None
    assert signal.getsignal(number) is signal.SIG_IGN


def test_an_error_of_the_block_does_not_swallow_the_signal(number: signal.Signals) -> None:
    signal.signal(number, raise_obeyed)
    with pytest.raises(Obeyed) as caught, deferred_signals():
        os.kill(os.getpid(), number)
        raise OSError("the disk is full")
    assert isinstance(caught.value.__context__, OSError)


def test_another_thread_defers_nothing(number: signal.Signals) -> None:
    signal.signal(number, raise_obeyed)
    seen = []

    def defer() -> None:
        with deferred_signals():
            seen.append(signal.getsignal(number))

    thread = threading.Thread(target=defer)
    thread.start()
    thread.join()
    assert seen == [raise_obeyed]
