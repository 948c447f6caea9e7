"""Counting durable writes, and dying before one of them.

Whatever is kept becomes visible by a rename or an exchange, and whatever goes away by an unlink or a rmtree: between two of these
nothing changes that another process could see.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from patchsae.storage import atomic


def die_before(at: int) -> Callable[[], int]:
    """From now on counts the durable writes of this process, which dies by SIGKILL before number `at` (from 1; 0:
    never). Returns what tells the count."""
    n_writes = 0

    def before() -> None:
        nonlocal n_writes
        n_writes += 1
        if n_writes == at:
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, name in (
        (Path, "replace"),
        (Path, "rename"),
        (Path, "unlink"),
        (shutil, "rmtree"),
        (atomic, "_exchange_at_once"),
    ):
        _count(owner, name, before)
    return lambda: n_writes


def _count(owner: Any, name: str, before: Callable[[], None]) -> None:
    plain = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        before()
        return plain(*arguments, **options)

    setattr(owner, name, counted)
