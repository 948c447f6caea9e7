"""Pages in a real browser that reaches nothing but the pages it is meant to show."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, Route, sync_playwright

Theme = Literal["light", "dark"]
WIDE, NARROW = (1280, 800), (390, 844)
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_NO_REQUESTS_OF_ITS_OWN = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-gpu",
)
REQUIRED = os.environ.get("PATCHSAE_BROWSER") == "required"
"""Whether a missing browser is a failure, as in `.ci/run`, and no reason to skip."""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser process. Skips the test that asks for it where none is installed, unless `REQUIRED`.

    Playwright's event loop stays set in this thread until the end of the block, so that `asyncio.run` fails in it.
    """
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        say = pytest.fail if REQUIRED else pytest.skip
        say(f"no browser here: none of {', '.join(_NAMES)} is on the PATH (`apt-get install chromium`).")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=[*_NO_REQUESTS_OF_ITS_OWN, *sandbox])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A tab of the browser, and everything that went wrong in it.

    `faults` are console errors and warnings, errors of scripts, and requests that lead elsewhere than to
    `allowed`, which are aborted. `requests` are the addresses of all requests.
    """

    page: Page
    allowed: str
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.route("**/*", self._let_pass_or_abort)
        # A page opened as a file asks for files, which `route` does not see.
        self.page.on("request", self._note)
        self.page.on("console", self._note_message)
        self.page.on("pageerror", lambda error: self.faults.append(f"error of a script: {error}"))

    def expect(self, *fragments: str) -> None:
        """Forgets the faults that contain one of `fragments`, each of which must be in one of them."""
        for fragment in fragments:
            assert any(fragment in fault for fault in self.faults), (fragment, self.faults)
        self.faults = [one for one in self.faults if not any(fragment in one for fragment in fragments)]

    def _let_pass_or_abort(self, route: Route) -> None:
        if self._is_allowed(route.request.url):
            route.continue_()
        else:
            route.abort()

    def _note(self, request: Request) -> None:
        self.requests.append(request.url)
        if not self._is_allowed(request.url):
            self.faults.append(f"request that leaves {self.allowed}: {request.url}")

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.type} on the console: {message.text} {_place(message.location)}")

    def _is_allowed(self, url: str) -> bool:
        return url.startswith((self.allowed, "data:", "blob:"))


def _place(location: dict[str, Any] | Any) -> str:
    return f"({location['url']}, line {location['lineNumber']})" if location["url"] else ""


@contextlib.contextmanager
def tab(
    browser: Browser,
    allowed: str,
    theme: Theme = "light",
    size: tuple[int, int] = WIDE,
    **settings: Any,
) -> Iterator[Watched]:
    """A tab with cookies and storage of its own. At the end of the block, no fault may be left."""
    context: BrowserContext = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=theme,
        reduced_motion="reduce",
        **settings,
    )
    context.set_default_timeout(10_000)
    try:
        watched = Watched(context.new_page(), allowed)
        yield watched
        assert not watched.faults, "\n".join(watched.faults)
    finally:
        context.close()
