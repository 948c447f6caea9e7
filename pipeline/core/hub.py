"""Downloads from a hub of models, on machines that may have no network."""

from __future__ import annotations

import contextlib
import socket
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit


@contextlib.contextmanager
def from_hub() -> Iterator[None]:
    """Inside, files come from the hub's cache alone if the hub cannot be reached.

    Without this, huggingface_hub asks for each file for half a minute before it looks into its cache, or fails.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _is_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_reachable(endpoint: str) -> bool:
    """Whether the endpoint has an address. A proxy finds it by itself."""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, 443)
    except OSError:
        return False
    return True
