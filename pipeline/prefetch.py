"""One item ahead: a thread fetches the next item of an iterable while the one before it is in use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """The items in order. What the iterable raises is raised where its item would have come."""
    iterator = iter(items)
    with ThreadPoolExecutor(1, "prefetch") as pool:
        coming = pool.submit(next, iterator, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, iterator, _END)
            yield item  # type: ignore[misc]
