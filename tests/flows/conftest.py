"""One Prefect server for every test here, and one small experiment."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.store import Store
from tests.support.prefect_server import EXPERIMENT, Server, on_a_leash, quiet_environment


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = quiet_environment(home) | {"PREFECT_UI_ENABLED": "false"}
    command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = on_a_leash([sys.executable, "-m", *command], environment, subprocess.DEVNULL)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        assert process.poll() is None, "the server did not start"
        try:
            opener.open(f"{url}/health", timeout=5).close()
            break
        except OSError:
            time.sleep(0.2)
    yield Server(url, environment | {"PREFECT_API_URL": url})
    process.communicate()


@pytest.fixture
def in_server(server: Server) -> Iterator[Server]:
    """Flows called in the test itself report to the server."""
    with temporary_settings({PREFECT_API_URL: server.url, PREFECT_LOGGING_TO_API_ENABLED: False}):
        yield server


@pytest.fixture
def hangups() -> Iterator[None]:
    """SIGHUP does what it does by itself, also where the tests run under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiments") / "little.yaml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="session")
def serial(little: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The little experiment, run in this process without Prefect or Dask. Read only."""
    store = Store(tmp_path_factory.mktemp("serial") / "store")
    run(work_on(store, parse(little.read_text(), "little")), Runtime())
    return store


@pytest.fixture
def store(serial: Store, tmp_path: Path) -> Store:
    """A store in which the little experiment is done, to change at will."""
    return Store(shutil.copytree(serial.root, tmp_path / "store"))
