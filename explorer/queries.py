"""`Queries`: SQL over a store's tables in a process of its own, with bounds on its time and memory.

A query such as a cross join of two large tables would otherwise take the memory of the machine, and no library can
stop Polars inside the server's own process.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from patchsae.storage.errors import UserError

Style = Literal["json", "csv", "parquet"]

MAX_BYTES = 2_000_000_000
"""Memory of the process. It is looked at 20 times a second, where the system tells it (Linux)."""
_LOOK_SECONDS = 0.05
_KEEP_BYTES = 500_000_000
# Reading the tables' digests is part of the first query.
_SECONDS: dict[Style, float] = {"json": 30.0, "csv": 120.0, "parquet": 120.0}
MOST_ROWS: dict[Style, int] = {"json": 1000, "csv": 1_000_000, "parquet": 1_000_000}
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Answer:
    """`header` has n_rows, truncated, warnings and, for JSON, columns, types and rows; `data` is a file's content."""

    header: dict[str, Any]
    data: bytes


class Queries:
    """Runs one query after another in a process that is started when it is first needed, and after it was ended."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """Starts the process, which takes a second, before the first query asks for it."""
        if self._lock.acquire(blocking=False):
            try:
                self._running()
            finally:
                self._lock.release()

    def run(self, query: str, experiment: str | None, style: Style, seconds: float | None = None) -> Answer:
        """The rows of a query. Raises UserError if it is wrong, or takes too long or too much memory."""
        seconds = _SECONDS[style] if seconds is None else seconds
        if not self._lock.acquire(timeout=seconds):
            raise UserError("query: another query is still running; wait for it, and ask again.")
        try:
            process = self._running()
            request = {
                "query": query,
                "experiment": experiment,
                "style": style,
                "most_rows": MOST_ROWS[style],
            }
            try:
                answer = self._ask(process, orjson.dumps(request) + b"\n", seconds)
            except BaseException:
                self.close()
                raise
        finally:
            self._lock.release()
        if "error" in answer.header:
            raise UserError(answer.header["error"])
        return answer

    def stop(self) -> None:
        """Ends a query that another thread runs, which gets a sentence."""
        process = self._process
        if process is not None:
            process.kill()

    def close(self) -> None:
        """Ends the process. Only the thread that asks may call it while it asks."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            # Without the current folder among the places where Python looks for modules.
            module = "patchsae.explorer.query_process"
            command = [sys.executable, "-P", "-m", module, str(self._root), str(os.getpid())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], request: bytes, seconds: float) -> Answer:
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(request)
            process.stdin.flush()
        reply = bytearray()
        header: dict[str, Any] | None = None
        wanted = 0
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while header is None or len(reply) < wanted:
                if time.monotonic() > until:
                    raise UserError(
                        f"query: took longer than {seconds:g} s and was ended; narrow it with WHERE, or run it without a "
                        "limit by `patchsae query`."
                    )
                if _memory(process.pid) > MAX_BYTES:
                    raise UserError(
                        f"query: took more than {MAX_BYTES / 1e9:g} GB of memory and was ended; narrow it with WHERE or "
                        "LIMIT, or run it without a limit by `patchsae query`."
                    )
                if not selector.select(_LOOK_SECONDS):
                    continue
                data = os.read(process.stdout.fileno(), 1 << 20)
                if not data:
                    raise UserError("query: its process ended before it answered; ask again.")
                reply += data
                if header is None and (end := reply.find(b"\n")) >= 0:
                    header = orjson.loads(reply[:end])
                    wanted = header["bytes"]
                    del reply[: end + 1]
        if _memory(process.pid) > _KEEP_BYTES:
            self.close()
        return Answer(header, bytes(reply))


def _memory(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 (twenty times a second)
            return int(file.read().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0
