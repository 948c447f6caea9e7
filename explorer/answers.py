"""`Answers`: how a resource, or an error, becomes a response. Functions of resources run in threads, several at once."""

from __future__ import annotations

import hashlib
import logging
import time
import traceback
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from patchsae.explorer import sources
from patchsae.explorer.content import dump
from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.resources import routes
from patchsae.storage.errors import Damaged, UserError

_SECONDS_BEFORE_MORE = 0.5
_SECONDS_OF_QUIET = 1.0
_LOG = logging.getLogger("patchsae.explorer")


class Answers:
    """Answers requests from a library."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._asked_at = time.monotonic()

    def warm_up(self) -> None:
        """Looks into the store, so that the first request need not, and loads what the first latent's page needs.

        That is torch too, which takes seconds to import. It waits until nobody asks for anything.
        """
        self._library.snapshot()
        # The first page's data come first: loading modules would keep its thread waiting.
        time.sleep(_SECONDS_BEFORE_MORE)
        for view in self._library.views()[:1]:
            sources.framing(self._library, view)
            while time.monotonic() - self._asked_at < _SECONDS_OF_QUIET:
                time.sleep(_SECONDS_OF_QUIET / 5)
            from patchsae.explorer import models  # noqa: F401

    def close(self) -> None:
        """Ends what still runs."""
        self._library.queries.stop()

    def resource(self, request: Request, body: bytes | None = None) -> Response:
        """The resource of a path below `/api/`; `body` is that of a POST."""
        return self._respond(request, routes.RESOURCES, body)

    def file(self, request: Request, body: bytes | None = None) -> Response:
        """A picture or a download."""
        return self._respond(request, routes.FILES, body)

    def _respond(self, request: Request, among: tuple[routes.Resource, ...], body: bytes | None) -> Response:
        self._asked_at = time.monotonic()
        try:
            return self._answer(request, among, body)
        except Absent as error:
            return sentence(404, str(error))
        except Damaged as error:
            return sentence(409, str(error))
        except UserError as error:
            return sentence(400, str(error))
        except Exception:  # noqa: BLE001 (the boundary to the browser, which gets a sentence; the log has the rest)
            _LOG.error("%s: %s", request.url.path, traceback.format_exc())
            return sentence(500, "The server could not answer this; its terminal says why.")

    def _answer(self, request: Request, among: tuple[routes.Resource, ...], body: bytes | None) -> Response:
        resource, parts = routes.find(request.path_params["path"], body is not None, among)
        snapshot = self._library.snapshot()
        etag = _etag(snapshot.at.digest, self._library.version, request.url.path, request.url.query)
        is_fixed = not (resource.live or resource.posts)
        if is_fixed and request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers={"etag": etag, "cache-control": "no-cache"})
        arguments: dict[str, Any] = {**request.query_params, **parts}
        if body is not None:
            arguments["body"] = body
        try:
            found = resource.function(self._library, arguments)
        except (OSError, UserError):
            if self._library.snapshot().at == snapshot.at:
                raise
            # A run changed the store meanwhile: what was damaged or gone may be there again.
            found = resource.function(self._library, arguments)
        headers = {"etag": etag, "cache-control": "no-cache"} if is_fixed else {"cache-control": "no-store"}
        if among is routes.RESOURCES:
            return Response(dump(found), media_type="application/json", headers=headers)
        if found.max_age:
            headers["cache-control"] = f"private, max-age={found.max_age}"
        return Response(found.data, media_type=found.media_type, headers={**headers, **found.headers})


def sentence(status: int, text: str) -> Response:
    """An error as the pages show it."""
    headers = {"cache-control": "no-store"}
    return Response(dump({"error": text}), status, media_type="application/json", headers=headers)


def _etag(*parts: str) -> str:
    return f'W/"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}"'
