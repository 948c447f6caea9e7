"""The server's application: routes only.

Add a resource in `explorer/resources/routes.py`, and a page or script by putting it into `explorer/pages`. What loads
slowly (Polars, the store) is imported with the first request for data, so that the first page is there at once.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from anyio import to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from patchsae.explorer.guard import Guard, Policy

PAGES = Path(__file__).parent / "pages"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}

Respond = Callable[[Request, bytes | None], Response]
"""(request, body of a POST) -> response. It may take long, and is called in a thread."""


def application(resource: Respond, file: Respond, policy: Policy) -> Starlette:
    """The application. `resource` answers what lies below `/api/`, `file` pictures and downloads."""

    async def get(request: Request) -> Response:
        return await _in_thread(resource, request, None)

    async def post(request: Request) -> Response:
        return await _in_thread(resource, request, await request.body())

    async def get_file(request: Request) -> Response:
        return await _in_thread(file, request, None)

    pages = _Pages(PAGES)
    return Starlette(
        routes=[
            Route("/api/{path:path}", get, methods=["GET"]),
            Route("/api/{path:path}", post, methods=["POST"]),
            Route("/", pages.index),
            Route("/favicon.ico", pages.icon),
            Route("/pages/{path:path}", pages.page),
            Route("/{path:path}", get_file),
        ],
        middleware=[
            Middleware(Guard, policy=policy),
            Middleware(GZipMiddleware, minimum_size=1000, compresslevel=4),
        ],
    )


async def _in_thread(respond: Respond, request: Request, body: bytes | None) -> Response:
    # Ctrl-C does not wait for threads that still compute.
    return await to_thread.run_sync(partial(respond, request, body), abandon_on_cancel=True)


class _Pages:
    """The files of `explorer/pages`, listed once. No path from a request reaches the disk."""

    def __init__(self, folder: Path) -> None:
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        self._files: Mapping[str, Path] = {path.relative_to(folder).as_posix(): path for path in files}

    def index(self, request: Request) -> Response:
        return self._file(request, "index.html")

    def icon(self, request: Request) -> Response:
        return (
            self._file(request, "favicon.ico") if "favicon.ico" in self._files else Response(status_code=204)
        )

    def page(self, request: Request) -> Response:
        return self._file(request, request.path_params["path"])

    def _file(self, request: Request, name: str) -> Response:
        path = self._files.get(name)
        if path is None:
            error = json.dumps({"error": f"{name[:200]}: there is no such file."})
            return Response(error, 404, media_type="application/json")
        data = path.read_bytes()
        etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"etag": etag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        kind = _TYPES.get(path.suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(data, media_type=kind, headers=headers)
