"""A server of the explorer in a thread of the tests."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import uvicorn

from patchsae.explorer.answers import Answers
from patchsae.explorer.app import application
from patchsae.explorer.guard import Policy
from patchsae.explorer.library import Library
from patchsae.explorer.serve import listen
from patchsae.storage.store import Store


@contextlib.contextmanager
def explored(store: Store) -> Iterator[str]:
    """The address of the real application over a store, at a free port of 127.0.0.1, such as http://127.0.0.1:4711/."""
    listening = listen("127.0.0.1", 0)
    answers = Answers(Library(store))
    app = application(answers.resource, answers.file, Policy.of("127.0.0.1", listening.port))
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    # Signals are those of the test run.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    thread = threading.Thread(target=server.run, args=([listening.socket],), daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.005)
    try:
        yield listening.url()
    finally:
        server.should_exit = True
        thread.join(10)
