"""`deferred_signals`, with which a loop takes its step to the end when the process is asked to end.

Ctrl-C (SIGINT) raises KeyboardInterrupt wherever the program is, also in the middle of a training step, when
some weights are updated and others are not. SIGTERM (a scheduler) and SIGHUP (a closed terminal) end the
process on the spot. A loop that defers them can write down where it is before the process ends.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Deferred:
    """The signal that asked the process to end, or None; `deferred_signals` sets it."""

    signal: int | None = None


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
