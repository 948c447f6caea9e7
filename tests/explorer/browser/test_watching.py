"""The watch over pages in the browser, on which the tests of the explorer's pages rely."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.support.browser import tab


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("fetch('http://192.0.2.1/x').catch(() => 0)", "request that leaves"),
        ("document.body.append(Object.assign(new Image(), {src: '/etc/hostname'}))", "request that leaves"),
        ("console.warn('careful')", "warning on the console: careful"),
        ("console.error('no')", "error on the console: no"),
        ("throw new Error('thrown')", "error of a script: thrown"),
        ("Promise.reject(new Error('forgotten'))", "error of a script: forgotten"),
    ],
)
def test_a_fault_of_a_page_is_found(browser: Browser, tmp_path: Path, script: str, fault: str) -> None:
    page = tmp_path / "index.html"
    page.write_text(f"<!doctype html><title>t</title><body><script>{script}</script>")
    with pytest.raises(AssertionError, match=fault), tab(browser, tmp_path.as_uri()) as watched:
        watched.page.goto(page.as_uri())
        watched.page.wait_for_timeout(50)


def test_a_page_without_fault_passes(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text("<!doctype html><title>t</title><body><script>console.log('fine')</script>")
    with tab(browser, tmp_path.as_uri()) as watched:
        watched.page.goto(page.as_uri())
    assert watched.requests == [page.as_uri()]
