"""`prefetch`, with which extraction and training load the next batch while they compute on this one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """The items in order; a thread fetches the next item while the caller uses the present one.

    An exception of the iterable is raised at the place of the item that caused it.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(1, "prefetch") as pool:
        coming = pool.submit(next, iterator, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, iterator, _END)
            yield item  # type: ignore[misc]
