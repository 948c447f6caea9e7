"""The browser of a file's tests, and stores that are shown in it: by a server, or as files."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from patchsae.storage.store import Store
from tests.support.browser import Watched, chromium, tab
from tests.support.explored import explored


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests of a file. It does not outlive the file: see `chromium`."""
    with chromium() as opened:
        yield opened


@dataclass
class Site:
    """A store as a browser sees it. `address` is that of its first page, and `allowed` what all requests begin with.

    `ask` gives the value of a resource, by its path.
    """

    browser: Browser
    address: str
    allowed: str
    ask: Callable[..., dict[str, Any]]
    home: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.ask("home")

    def view(self, sae: str | None = None) -> dict[str, Any]:
        """The head of the first view, or of that of an SAE, by its name."""
        return next(one for one in self.home["views"] if sae in (None, one["sae"]))

    @contextlib.contextmanager
    def open(self, route: str, **settings: Any) -> Iterator[Watched]:
        """A tab that shows the page at `route`, such as `#/`, once it is there with its data."""
        with tab(self.browser, self.allowed, **settings) as watched:
            watched.page.goto(self.address + route)
            settled(watched.page)
            yield watched


def settled(page: Page) -> None:
    """Waits until a page is there with its data."""
    page.wait_for_selector('body:not([data-state=loading])[data-pending="0"]')


@contextlib.contextmanager
def served(browser: Browser, store: Store) -> Iterator[Site]:
    """A store that the real server shows."""
    with explored(store) as url:

        def ask(path: str, **query: Any) -> dict[str, Any]:
            with urllib.request.urlopen(f"{url}api/{path}?{urllib.parse.urlencode(query)}") as answer:
                found: dict[str, Any] = json.load(answer)
                return found

        yield Site(browser, url, url, ask)


def as_files(browser: Browser, folder: Path) -> Site:
    """A report that is opened as files."""

    def ask(path: str) -> dict[str, Any]:
        script = (folder / "data" / f"{path}.js").read_text()
        match = re.fullmatch(r'patchsae\.receive\("[^"]+",(.*)\);\n', script, re.DOTALL)
        assert match is not None
        found: dict[str, Any] = json.loads(match[1])
        return found

    return Site(browser, (folder / "index.html").as_uri(), folder.as_uri(), ask)
