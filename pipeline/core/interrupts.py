"""`deferred_signals`, with which a loop comes to a state it can go on from when the process is asked to end.

Ctrl-C (SIGINT) raises KeyboardInterrupt wherever the program is, also in the middle of a training step, when
some weights are updated and others are not. SIGTERM (a scheduler) and SIGHUP (a closed terminal) end the
process on the spot. A loop that defers them can write down where it is before the process ends. A step may
take a minute, so long computations call `leave_if_asked`, by which `abandonable` steps end early.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Deferred:
    """The signal that asked the process to end, or None; `deferred_signals` sets it."""

    signal: int | None = None


class Abandoned(Exception):
    """Raised by `leave_if_asked` inside a step that is given up."""


_abandonable: ContextVar[Deferred | None] = ContextVar("abandonable", default=None)


@contextlib.contextmanager
def abandonable(deferred: Deferred) -> Iterator[None]:
    """Inside the block, `leave_if_asked` raises Abandoned once `deferred` has a signal."""
    token = _abandonable.set(deferred)
    try:
        yield
    finally:
        _abandonable.reset(token)


def leave_if_asked() -> None:
    """Raises Abandoned if the process was asked to end and the present step may be given up.

    Products of many tokens call it, each of which takes about a second at most.
    """
    deferred = _abandonable.get()
    if deferred is not None and deferred.signal is not None:
        raise Abandoned


@contextlib.contextmanager
def deferred_signals(then: Callable[[], object] = lambda: None) -> Iterator[Deferred]:
    """Notes the first SIGINT, SIGTERM or SIGHUP in place of obeying it, and obeys it when the block ends.

    `then` is called as soon as the signal is noted; it should make the block end soon.

    To obey it is to leave it to the handler that was there before: by default, SIGINT raises
    KeyboardInterrupt and the others end the process. A second signal is obeyed at once. Signals that the
    process ignores (SIGHUP under `nohup`) stay ignored. Outside the main thread, which alone may set
    handlers, nothing is deferred.
    """
    deferred = Deferred()
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        deferred.signal = number
        # From here on the old handlers are back, so a second signal is obeyed at once.
        restore()
        then()

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            # None is a handler that Python does not know, and so could not put back.
            if handler not in (signal.SIG_IGN, None):
                before[number] = handler
                signal.signal(number, note)
    try:
        yield deferred
    finally:
        restore()
        # Where KeyboardInterrupt ends the block, a second signal has been obeyed already.
        if deferred.signal is not None and not isinstance(sys.exception(), KeyboardInterrupt):
            signal.raise_signal(deferred.signal)
