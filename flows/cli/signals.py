"""SIGTERM and SIGHUP as Ctrl-C: a time limit or a closed terminal ends a command as an interrupt does."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import click

from patchsae.storage.errors import UserError

_STOPPING = (signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The interrupt that stands for a signal other than SIGINT."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_status(interrupt: BaseException) -> int:
    """128 and the number of the signal, as a shell reports a command that a signal ended."""
    return 128 + (interrupt.number if isinstance(interrupt, Stopped) else signal.SIGINT)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Inside the `with` block the first SIGTERM or SIGHUP raises `Stopped` in the main thread.

    Later ones are dropped, since they come in pairs (a terminal that closes sends SIGHUP twice, a service
    manager SIGTERM and SIGHUP) and must not interrupt the cleaning up. A signal that was ignored stays
    ignored, as `nohup` wants it. A second Ctrl-C is not dropped. An import that is interrupted may swallow the
    interrupt and leave a package half loaded: an unexpected error after the signal is taken for its consequence, and
    raised as `Stopped` too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped: Stopped | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped is None:
            stopped = Stopped(number)
            raise stopped

    taken = [number for number in _STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in taken}
    try:
        yield
    except (UserError, click.exceptions.Exit):
        raise
    except Exception as error:
        if stopped is not None:
            raise stopped from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def waking_at_interrupt() -> None:
    """Lets Ctrl-C wake the main thread while it waits for another thread or for Dask.

    Polars' import replaces the handler of SIGINT by one after which a wait goes on as if nothing had happened, so
    that Ctrl-C would count only when the wait is over. It is imported here, before anything waits.
    """
    import polars  # noqa: F401

    signal.siginterrupt(signal.SIGINT, True)
