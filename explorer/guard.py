"""`Guard`: what every request is checked for before anything answers it, and the headers of every response."""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
_LONGEST_QUERY = 32_000
MAX_BODY = 64_000_000
"""Bytes of the largest body that is read: an image for `upload`."""


@dataclass(frozen=True)
class Policy:
    """Who is let in. `token` is None on a loopback address, where all users of this machine are."""

    names: frozenset[str]
    """The names that a browser may use for this server."""
    any_address: bool = False
    """Whether every IP address is such a name, for servers on all addresses of the machine."""
    token: str | None = None
    cookie: str = "patchsae"
    max_body: int = MAX_BODY
    allowed_methods: frozenset[str] = field(default=frozenset({"GET", "HEAD", "POST"}))

    @classmethod
    def of(cls, host: str, port: int, with_token: bool = False) -> Policy:
        """The policy of a server at `host`. Anything but a loopback address has a token."""
        names = {"localhost", "127.0.0.1", "::1", host.lower()}
        open_to_others = not is_loopback(host)
        if open_to_others:
            names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
        token = secrets.token_urlsafe(24) if open_to_others or with_token else None
        # Cookies are shared by all ports of a name, so each server needs one of its own.
        return cls(frozenset(names), _is_wildcard(host), token, f"patchsae-{port}")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at `host`."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""


class Guard:
    """ASGI middleware. A refused request gets a sentence as JSON and reaches nothing behind it."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        refused = self._refused(scope, headers)
        if refused is not None:
            await _refuse(send, *refused)
            return
        if self._policy.token is not None and not self._has_cookie(headers):
            await self._let_in(scope, send)
            return
        try:
            await self._app(scope, _Bounded(receive, self._policy.max_body), _with_headers(send))
        except _TooLarge:
            await _refuse(send, 413, self._too_large())

    def _refused(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Status and sentence, if the request is refused for where it comes from or for its size."""
        host = headers.get("host", "")
        if not self._knows(host):
            return 403, (
                f"The name `{host[:100]}` is not one of this server's; open it by the address that it printed, or start "
                "it with `--host` and that name."
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "A page of another site asked for this, which is refused."
        is_page = scope["method"] == "GET" and scope["path"] == "/"
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not (
            is_page and headers.get("sec-fetch-mode") == "navigate"
        ):
            return 403, "A page of another site asked for this, which is refused."
        if scope["method"] not in self._policy.allowed_methods:
            return 405, f"{scope['method'][:20]}: this server answers GET and POST."
        if len(scope["query_string"]) > _LONGEST_QUERY:
            return 414, f"The address is longer than {_LONGEST_QUERY:,} bytes; shorten the query."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._policy.max_body:
            return 413, self._too_large()
        return None

    def _too_large(self) -> str:
        return f"The file is larger than {self._policy.max_body // 1_000_000} MB, which is the most that is read."

    def _knows(self, host: str) -> bool:
        """Whether a Host header names this server. The port is not compared: tunnels have another one."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._policy.names:
            return True
        if not self._policy.any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _has_cookie(self, headers: Headers) -> bool:
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        found = cookies.get(self._policy.cookie)
        return found is not None and self._is_token(found.value)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), (self._policy.token or "").encode())

    async def _let_in(self, scope: Scope, send: Send) -> None:
        """Keeps the token of the first page's address in a cookie, and sends the browser to the plain address."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["method"] == "GET" and scope["path"] == "/" and self._is_token(given):
            cookie = f"{self._policy.cookie}={self._policy.token}; Path=/; HttpOnly; SameSite=Strict"
            # A redirect of a navigation from elsewhere would not send a strict cookie; a refresh does.
            body = b"<!doctype html><meta http-equiv=refresh content='0;url=/'><title>patchsae</title>"
            await _reply(send, 200, body, "text/html", {"set-cookie": cookie})
            return
        await _refuse(
            send, 401, "This server asks for a token; open it by the address that `patchsae explore` printed."
        )


class _TooLarge(Exception):
    """More was received than is read."""


class _Bounded:
    """Receives a body of at most `most` bytes, whatever its length was said to be."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._left = most

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise _TooLarge
        return message


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return sending


async def _refuse(send: Send, status: int, sentence: str) -> None:
    await _reply(send, status, json.dumps({"error": sentence}).encode(), "application/json")


async def _reply(
    send: Send, status: int, body: bytes, media_type: str, extra: Mapping[str, str] | None = None
) -> None:
    headers = {"content-type": media_type, "cache-control": "no-store", **_HEADERS, **(extra or {})}
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
