"""A temporary Prefect server for one `patchsae run`, used if no server is configured.

Prefect would start a server by itself. But that server outlives a run that is killed, and it stops at the
first Ctrl-C, so that the run cannot be reported as interrupted. Each Dask worker would start one of its
own, and two servers that start at the same time break each other's database. The server of this module has
its own database in the run's temporary folder. It asks for a password, which only the processes of the run
know, since every user of the machine can reach its port.

    python -m patchsae.flows.server PORT FOLDER      runs the server until its standard input is closed
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from patchsae.flows.run_folder import RunFolder, delete, run_folder
from patchsae.storage.errors import UserError

if TYPE_CHECKING:
    import uvicorn

_STARTUP_SECONDS = 180.0
_own_urls: set[str] = set()


def has_lasting_server() -> bool:
    """Whether this process uses a configured server, which other runs use too."""
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    return bool(url) and url not in _own_urls


@contextlib.contextmanager
def server_for_a_run() -> Iterator[None]:
    """Provides a Prefect server inside the `with` block: the configured one, or a temporary one.

    Raises UserError if the configured server does not answer or the temporary one does not start.
    """
    from prefect.events.worker import EventsWorker
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_LOGGING_TO_API_ENABLED,
        temporary_settings,
    )

    configured = PREFECT_API_URL.value()
    if configured:
        _check_answers(configured)
        yield
        return
    password = secrets.token_urlsafe()
    with run_folder() as folder, _server(folder, password) as url:
        _own_urls.add(url)
        try:
            with temporary_settings(
                {
                    PREFECT_API_URL: url,
                    PREFECT_API_AUTH_STRING: password,
                    # Logs are not sent to the server, since they would be deleted with it.
                    PREFECT_LOGGING_TO_API_ENABLED: False,
                }
            ):
                yield
        finally:
            # Prefect's last events must be sent before the server ends. Otherwise Prefect tries to send them
            # to a server that is gone, until it gives up.
            EventsWorker.drain_all(timeout=10)


@contextlib.contextmanager
def _server(folder: RunFolder, password: str) -> Iterator[str]:
    """Runs the server in a process group of its own inside the `with` block. Provides its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(port), str(folder.path)],
        stdin=subprocess.PIPE,
        env={
            **os.environ,
            # `python -m` would look into the current folder first, where a user's own `queue.py` may lie.
            "PYTHONSAFEPATH": "1",
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder.path / 'prefect.db'}",
            "PREFECT_SERVER_API_AUTH_STRING": password,
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        },
        pass_fds=[folder.lock],
        start_new_session=True,
    )
    try:
        _wait_until_it_answers(process, url)
        yield url
    finally:
        # Closing its standard input ends it.
        process.communicate()


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + _STARTUP_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise UserError(
                f"{url}: Prefect's temporary server did not start (its own message is above); run "
                "`prefect server start` elsewhere and set PREFECT_API_URL to use that one."
            )
        time.sleep(0.1)


def _answers(url: str) -> bool:
    # The server is on this machine, so the proxies that the environment names are not used.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _check_answers(url: str) -> None:
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            client.hello()
    except httpx.HTTPError as error:
        raise UserError(
            f"PREFECT_API_URL is {url}, which does not answer ({type(error).__name__}); start that server, or "
            "`prefect config unset PREFECT_API_URL` to run without one."
        ) from None


def _serve(port: int, folder: Path) -> NoReturn:
    """Runs Prefect's API until standard input is closed, which happens however the parent process ends.

    Then deletes the run's folder, which the parent cannot do if it was killed.
    """
    # Schedulers send signals to all processes of a job. The run still needs its server to end in order.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    servers: list[uvicorn.Server] = []

    def run() -> None:
        import uvicorn
        from prefect.server.api.server import create_app

        app = create_app(ephemeral=True, final=True)
        servers.append(uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="error")))
        servers[0].run()

    # Uvicorn leaves the signals alone in a thread, and the parent is watched while Prefect is imported.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    watcher = threading.Thread(target=_wait_for_end_of_input, daemon=True)
    watcher.start()
    while watcher.is_alive() and thread.is_alive():
        watcher.join(0.1)
    if servers:
        servers[0].should_exit = True
        thread.join(10)
    delete(folder)
    os._exit(0)


def _wait_for_end_of_input() -> None:
    while os.read(0, 1):
        pass


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]))
