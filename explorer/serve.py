"""Starts the server: its port, its address with a token if it needs one, and the browser."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import uvicorn

from patchsae.explorer.app import application
from patchsae.explorer.guard import Policy
from patchsae.storage.errors import UserError

PORT = 8765
_TRIES = 20
_SECONDS_TO_END = 1.0


@dataclass(frozen=True)
class Listening:
    """A socket that listens, so that nobody else can take its port."""

    socket: socket.socket
    host: str
    port: int

    def url(self, token: str | None = None) -> str:
        """The address to open. A server on all addresses is opened by the machine's name."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::", "") else self.host
        name = f"[{host}]" if ":" in host else host
        return f"http://{name}:{self.port}/" + (f"?token={token}" if token else "")


def listen(host: str, port: int | None) -> Listening:
    """Takes `port`, or else the first free one from 8765 on. Raises UserError if it cannot be taken."""
    for number in [port] if port is not None else range(PORT, PORT + _TRIES):
        try:
            found = _bound(host, number)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and port is None:
                continue
            raise UserError(_why(host, number, error)) from None
        return Listening(found, host, found.getsockname()[1])
    raise UserError(f"the ports {PORT} to {PORT + _TRIES - 1} are all in use; name a free one with `--port`.")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError:
        found.close()
        raise
    return found


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"--port {port}: is in use, perhaps by another `patchsae explore`; name another, or leave it out."
        )
    if error.errno == errno.EACCES:
        return f"--port {port}: may not be used by this user; name one above 1023."
    return f"--host {host}: cannot listen there ({error.strerror}); give an address of this machine."


def serve(
    store: str, listening: Listening, policy: Policy, on_ready: Callable[[], None] = lambda: None
) -> None:
    """Serves a store until SIGINT or SIGTERM. `on_ready` is called once the first page can be opened."""

    opening = threading.Lock()

    @cache
    def opened() -> Any:
        from patchsae.explorer.answers import Answers
        from patchsae.explorer.library import Library
        from patchsae.storage.store import Store

        return Answers(Library(Store(store)))

    def answers() -> Any:
        # Of the first requests, which come at once, one opens the store, and the others wait.
        with opening:
            return opened()

    app = application(
        lambda request, body: answers().resource(request, body),
        lambda request, body: answers().file(request, body),
        policy,
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=1,
        server_header=False,
        proxy_headers=False,
    )
    server = uvicorn.Server(config)

    def when_ready() -> None:
        while not (server.started or server.should_exit):
            time.sleep(0.005)
        if server.started:
            on_ready()
            # The first page is on its way; what its data needs is loaded meanwhile.
            answers().warm_up()

    # A request that is no HTTP, or that is cancelled at the end, is nothing for the terminal.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: record.exc_info is not None and not server.should_exit
    )
    threading.Thread(target=when_ready, daemon=True).start()
    try:
        server.run([listening.socket])
    finally:
        answers().close()
        _end_soon()


def _end_soon() -> None:
    """Ends this process in a second, whatever its threads still compute. There is nothing that they could leave half."""
    late = threading.Timer(_SECONDS_TO_END, os._exit, [0])
    late.daemon = True
    late.start()


def open_browser(url: str) -> None:
    """Opens a browser, if there is one."""
    webbrowser.open(url)
