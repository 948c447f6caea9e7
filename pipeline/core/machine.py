"""`Machine`: how fast this machine does what stages need, measured in moments and remembered.

A stage says how much it will do of what a `Probe` measures (products, images to decode, bytes to write), and
the machine says how many seconds that takes. `patchsae plan` shows them. They decide nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from patchsae.pipeline.core.prediction import Probe
from patchsae.pipeline.core.user_cache import user_cache
from patchsae.storage.atomic import write_atomic
from patchsae.storage.errors import UserError
from patchsae.storage.keys import parse_json

_SECONDS = 0.1
_LEAST = 1e-15


def figures_file() -> Path | None:
    """The file in which figures are remembered: one per machine, in the user's cache folder; None without a home."""
    with contextlib.suppress(UserError):
        return user_cache() / f"speed-{platform.node() or 'here'}.json"
    return None


class Machine:
    """Measures probes once, and remembers what they gave.

    `file` holds the figures of earlier runs; if it is None nothing is remembered. A file that cannot be read
    is measured anew, and one that cannot be written is done without.
    """

    def __init__(self, file: Path | None = None, seconds: dict[str, float] | None = None) -> None:
        self._file = file
        self._seconds: dict[str, float | None] = dict(seconds or {})
        self._new: dict[str, float | None] = {}
        if file is not None:
            self._seconds |= _figures(file)

    def seconds(self, effort: Sequence[tuple[Probe, float]] | None) -> float | None:
        """The seconds that an effort takes; None if it, or the speed of something in it, is not known."""
        if effort is None:
            return None
        total = 0.0
        for probe, amount in effort:
            each = self._of(probe)
            if each is None:
                return None
            total += amount * each
        return total

    def _of(self, probe: Probe) -> float | None:
        if probe.name not in self._seconds:
            try:
                self._seconds[probe.name] = max(_LEAST, probe.measure())
                if not probe.is_constant:
                    self._new[probe.name] = self._seconds[probe.name]
            except (UserError, OSError, RuntimeError):
                # What cannot be measured, such as a full GPU, is not predicted. A run says what is wrong.
                self._seconds[probe.name] = None
        return self._seconds[probe.name]

    def remember(self) -> None:
        """Writes the new figures beside those that are in the file."""
        if self._file is not None and self._new:
            with contextlib.suppress(OSError, UserError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                known = {**_figures(self._file), **self._new}
                write_atomic(self._file, json.dumps(known, indent=1, sort_keys=True).encode())
            self._new = {}


def _figures(file: Path) -> dict[str, float]:
    """The figures in a file; none if it is not there or holds anything else."""
    try:
        found = parse_json(file.read_bytes())
        return {str(name): max(_LEAST, float(value)) for name, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def repeated(do: Callable[[], object], n_units: float, device: str = "cpu") -> float:
    """Seconds per unit of something that does `n_units`: the fastest of some repetitions in a tenth of a second.

    The first call is not counted, since it also sets up threads and memory.
    """
    do()
    best, started = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - started < _SECONDS:
        _wait_for(device)
        before = time.perf_counter()
        do()
        _wait_for(device)
        best = min(best, time.perf_counter() - before)
    return best / n_units


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def fastest_device() -> str:
    """The device that a run takes if none is given."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _threads(device: str) -> str:
    return f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()


def products(precision: str, inner: int) -> Probe:
    """Matrix products [n, inner] x [inner, S]. A unit is a multiplication with its addition."""
    device, dtype = fastest_device(), getattr(torch, precision)
    n, outer = (512, 2048) if device == "cpu" else (4096, 16384)

    def measure() -> float:
        a = torch.rand(n, inner, device=device).to(dtype)
        b = torch.rand(outer, inner, device=device).to(dtype)
        return repeated(lambda: a @ b.T, n * inner * outer, device)

    return Probe(f"products of {precision}, {inner} channels, {device}, {_threads(device)}", measure)


def blocks(width: int, n_tokens: int, n_images: int, precision: str) -> Probe:
    """Transformer blocks of a tower, with random weights. A unit is one block on one image."""
    device, dtype = fastest_device(), getattr(torch, precision)

    def measure() -> float:
        heads = max(1, width // 64) if width % max(1, width // 64) == 0 else 1
        block = torch.nn.TransformerEncoderLayer(
            width,
            heads,
            4 * width,
            0.0,
            "gelu",
            batch_first=True,
            norm_first=True,
            device=device,
            dtype=dtype,
        ).eval()
        x = torch.rand(n_images, n_tokens, width, device=device, dtype=dtype)
        with torch.inference_mode():
            return repeated(lambda: block(x), n_images, device)

    sizes = f"width {width}, {n_tokens} tokens, {n_images} images"
    return Probe(f"blocks of {precision}, {sizes}, {device}, {_threads(device)}", measure)


def memory() -> Probe:
    """Reading and writing memory of the device. A unit is a byte that is read or written."""
    device = fastest_device()
    n = (1 << 23) if device == "cpu" else (1 << 27)

    def measure() -> float:
        a, b = torch.ones(n, device=device), torch.ones(n, device=device)
        return repeated(lambda: a.add_(b), 12 * n, device)

    return Probe(f"memory, {device}, {_threads(device)}", measure)


def waiting(seconds: float, what: str) -> tuple[Probe, float]:
    """What takes about as long on any machine, such as importing a large package, as an amount of its own."""
    return Probe(what, lambda: seconds, is_constant=True), 1


def disk(folder: Path) -> Probe:
    """Writing to the disk of a folder. A unit is a byte that was forced onto the disk."""

    def measure() -> float:
        data = os.urandom(1 << 24)
        with tempfile.TemporaryFile(dir=folder) as file:
            started = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return (time.perf_counter() - started) / len(data)

    return Probe(f"disk {folder.stat().st_dev}", measure)
