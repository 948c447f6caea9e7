"""Training that is asked to end: it takes its step to the end, writes a checkpoint, and then obeys."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patchsae.pipeline.core.interrupts import deferred_signals, leave_if_asked
from patchsae.pipeline.core.progress import Bar, Reporter
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.saes.sparse import encoder, latents
from patchsae.pipeline.training import train
from patchsae.pipeline.training.objectives import relu_l1
from patchsae.storage.checkpoints import Checkpoints
from patchsae.storage.store import Store
from tests.support import interrupted
from tests.support.interrupted import HALTS_IN_STEP, hear, say
from tests.support.sae_inputs import run
from tests.support.training_inputs import KINDS, NO_STEP, bytes_of, config_of, inputs_in

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


def test_a_step_that_was_given_up_does_not_count_on_the_bar(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, str]] = []

    class Seen(Bar):
        def _show(self) -> None:
            shown.append((self.done, self.note))

    class Reports(Reporter):
        @contextlib.contextmanager
        def bar(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
            yield Seen(label, total, unit, done)

    asked = asked_at(1)
    for module in (encoder, latents, relu_l1):
        monkeypatch.setattr(module, "leave_if_asked", asked)
    config = config_of("relu_l1", n_steps=3)
    with pytest.raises(KeyboardInterrupt):
        run(store, train.STAGE, config, inputs_in(store), replace(NO_STEP, reporter=Reports()))
    assert shown == [(0, "interrupted, writing a checkpoint of step 0")]


def test_a_signal_while_gradients_are_computed_gives_the_step_up(store: Store) -> None:
    """A step of a wide SAE takes a minute. Its decoder rows are scaled by then, and not a second time."""
    inputs = inputs_in(store)
    whole = run(store, train.STAGE, interrupted.config(), inputs, NO_STEP)
    expected = bytes_of(whole)
    store.discard(whole)
    process = interrupted.start(store, where="gradients")
    assert hear(process) == "halted"
    process.send_signal(signal.SIGINT)
    say(process, "go")
    process.communicate()
    assert process.returncode == -signal.SIGINT
    assert newest_step(store) == HALTS_IN_STEP - 1
    assert bytes_of(run(store, train.STAGE, interrupted.config(), inputs, NO_STEP)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_was_given_up_is_taken_again_alike(store: Store, kind: str) -> None:
    """Wherever it is: the first run is asked to end at its first product, the next one at its second, ..."""
    inputs = inputs_in(store)
    config = config_of(kind, n_steps=3, dead_feature_window=0)
    whole = run(store, train.STAGE, config, inputs, NO_STEP)
    expected = bytes_of(whole)
    store.discard(whole)
    steps: list[int | None] = []
    for product in itertools.count(1):
        with pytest.MonkeyPatch.context() as patched:
            for module in (encoder, latents, relu_l1):
                patched.setattr(module, "leave_if_asked", asked_at(product))
            try:
                artifact = run(store, train.STAGE, config, inputs, NO_STEP)
                break
            except KeyboardInterrupt:
                steps.append(newest_step(store))
    assert len(steps) > 4 and steps[0] == 0 and steps[-1] == 2, "given up in the first step and in the last"
    assert bytes_of(artifact) == expected


def asked_at(product: int) -> Callable[[], None]:
    """As `leave_if_asked`, but the process is asked to end when the given number of products has begun."""
    begun = itertools.count(1)

    def asked() -> None:
        if next(begun) == product:
            os.kill(os.getpid(), signal.SIGINT)
        leave_if_asked()

    return asked


def test_a_checkpoint_of_an_earlier_version_is_continued(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, config = inputs_in(store), config_of("relu_l1", n_steps=8)
    whole = run(store, train.STAGE, config, inputs, NO_STEP)
    expected = bytes_of(whole)
    store.discard(whole)
    save = Checkpoints.save

    def without(self: Checkpoints, step: int, arrays: Any, values: Any) -> None:
        save(self, step, {name: one for name, one in arrays.items() if name != "state.begun"}, values)
        raise KeyboardInterrupt

    with monkeypatch.context() as earlier, pytest.raises(KeyboardInterrupt):
        earlier.setattr(Checkpoints, "save", without)
        run(store, train.STAGE, config, inputs, replace(NO_STEP, checkpoint_seconds=0))
    assert newest_step(store) == 1
    assert bytes_of(run(store, train.STAGE, config, inputs, NO_STEP)) == expected


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
    n_steps, number = 600, signal.SIGTERM
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
