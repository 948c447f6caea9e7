"""The fence around GPUs: of the runs of one user on one machine, one at a time computes on a device.

Two SAEs that train on one GPU at once can run out of memory after hours. A Prefect server has a limit for
that, but a server forgets who holds it when it restarts, and runs without a server do not ask it. So whoever
computes on a GPU locks a file of that device too. The system releases the lock when the process ends, however
it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from patchsae.pipeline.core.resources import Resources
from patchsae.pipeline.core.user_cache import user_cache
from patchsae.storage.errors import UserError
from patchsae.storage.locks import lock_with_note


def devices_of(resources: Resources) -> list[str]:
    """The names of the GPUs that a run with these settings computes on; none on a CPU.

    With several processes, each process has the device of its number.
    """
    device = torch.device(resources.device or "cpu")
    if device.type != "cuda":
        return []
    index = torch.cuda.current_device() if device.index is None else device.index
    others = range(resources.processes) if resources.processes > 1 else ()
    return sorted({name_of(each) for each in (index, *others)})


def name_of(index: int) -> str:
    """The name of a CUDA device, which is the same in every process: its UUID.

    Where CUDA tells none, it is the machine's name and the entry of CUDA_VISIBLE_DEVICES, or the index.
    """
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is not None:
        return f"GPU-{uuid}"
    visible = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    word = visible[index] if index < len(visible) and visible[index] else str(index)
    return f"{socket.gethostname()}-cuda-{word}"


def folder() -> Path:
    """The folder of the locks, which is the same for all runs of a user. Raises UserError if the user has no home."""
    return user_cache() / "devices"


@contextlib.contextmanager
def fence(devices: Sequence[str], work: str, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Holds the locks of `devices` inside the `with` block.

    `work` says what is computed there. If another process holds one of them, `on_wait` is called once with a
    text that names the device, the process and its work. Raises UserError if a lock cannot be made.
    """
    note = f"process {os.getpid()} on {socket.gethostname()} computes {work}"
    with contextlib.ExitStack() as held:
        # Everybody takes them in this order, so that no two processes wait for each other.
        for device in sorted(devices):

            def waiting(other: str, device: str = device) -> None:
                on_wait(f"{device}, where {other or 'another process computes'}")

            try:
                path = folder() / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', device)}.lock"
                held.enter_context(lock_with_note(path, note, waiting))
            except (UserError, OSError) as error:
                reason = error if isinstance(error, UserError) else f"{error.filename}: {error.strerror}"
                raise UserError(
                    f"{device} cannot be kept from other runs ({reason}). Set XDG_CACHE_HOME to a folder of this "
                    "machine that can be written to."
                ) from None
        yield
