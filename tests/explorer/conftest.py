"""A client of the explorer over a store, without a socket."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from patchsae.explorer.answers import Answers
from patchsae.explorer.app import application
from patchsae.explorer.guard import Policy
from patchsae.explorer.library import Library
from patchsae.storage.store import Store

Open = Callable[[Store], TestClient]
ADDRESS = "http://127.0.0.1:8765"


@pytest.fixture
def explore() -> Open:
    """Opens a client over a store, as a browser on this machine is one."""

    def opened(store: Store) -> TestClient:
        answers = Answers(Library(store))
        app = application(answers.resource, answers.file, Policy.of("127.0.0.1", 8765))
        return TestClient(app, base_url=ADDRESS)

    return opened
