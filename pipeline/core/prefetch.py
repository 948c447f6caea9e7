"""Work in threads beside the main one: `thread_pool`, and `prefetch`, which loads a batch while one is computed on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


@contextlib.contextmanager
def thread_pool(n: int | None, name: str) -> Iterator[ThreadPoolExecutor]:
    """A pool of `n` threads, or of one per core and some more.

    If the block is left by an exception, such as Ctrl-C, only the tasks that have begun are waited for.
    """
    pool = ThreadPoolExecutor(n, name)
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """The items in order; a thread fetches the next item while the caller uses the present one.

    An exception of the iterable is raised at the place of the item that caused it.
    """
    iterator = iter(items)
    with thread_pool(1, "prefetch") as pool:
        coming = pool.submit(next, iterator, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, iterator, _END)
            yield item  # type: ignore[misc]
