"""Writing to standard output and standard error, whose reader may have gone, as `head` does when it has its lines."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def forget(stream: TextIO) -> None:
    """Sends what is left for a stream that nobody reads, and what is still to come, nowhere.

    Otherwise Python tries to write the rest when it ends, and complains.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def to_stderr(line: str) -> None:
    """Writes a line to standard error. It is lost if nobody reads that any more."""
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        forget(sys.stderr)
