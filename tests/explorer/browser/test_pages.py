"""Every page in a real browser, from the server and from a report's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from patchsae.explorer.report.contents import Choice
from patchsae.explorer.report.write import Report
from patchsae.storage.store import Store
from tests.explorer.browser.conftest import Site, as_files, served, settled
from tests.support.browser import NARROW, WIDE

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text()
LATENT, IMAGE, CLASS = 7, 3, 2
PAGES = {
    "home": "#/",
    "latents": "#/v/{view}/latents",
    "latent": "#/v/{view}/latent/{latent}",
    "classes": "#/v/{view}/classes",
    "class": "#/v/{view}/class/2",
    "images": "#/v/{view}/images",
    "image": "#/v/{view}/image/{image}",
    "sae": "#/sae/{sae}",
    "comparisons": "#/compare",
    "remapping": "#/compare/remapping/{remapping}",
    "matching": "#/compare/matching/{matching}",
    "tables": "#/tables",
}


@pytest.fixture(scope="module")
def server(browser: Browser, small_store: Store) -> Iterator[Site]:
    with served(browser, small_store) as site:
        yield site


@pytest.fixture(scope="module")
def report(browser: Browser, small_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site") / "report #1"
    Report(small_store, "small", Choice("12", images_per_latent=4, images=3)).write(folder)
    return as_files(browser, folder)


@pytest.fixture(params=["server", "report"])
def site(request: pytest.FixtureRequest) -> Site:
    found: Site = request.getfixturevalue(request.param)
    return found


def route(site: Site, name: str) -> str:
    """The address of a page, for a latent and an image that a report has too."""
    view = site.view()["key"]
    latent = frequent(site)
    keys = {one["kind"]: one["key"] for one in site.home["comparisons"]}
    image = site.ask(f"latent/{view}/{latent}")["top"][0]["image"]
    return PAGES[name].format(view=view, latent=latent, image=image, sae=site.home["saes"][0]["key"], **keys)


def frequent(site: Site) -> int:
    """The latent that fires on most images."""
    values = site.ask(f"latents/{site.view()['key']}/column/frequency")["values"]
    return int(max(range(len(values)), key=lambda latent: (values[latent], -latent)))


def violations(page: Page) -> list[str]:
    """What axe-core finds, with the first element of each."""
    found: list[dict[str, Any]] = page.evaluate(
        "axe.run({ preload: false }).then((found) => found.violations)"
    )
    return [f"{one['id']}: {one['help']} ({one['nodes'][0]['html'][:200]})" for one in found]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_there_in_both_themes_wide_and_narrow_and_readable_for_all(site: Site, name: str) -> None:
    with site.open(route(site, name), size=WIDE, theme="light") as watched:
        page = watched.page
        assert page.locator("body").get_attribute("data-state") == "ready"
        heading = page.locator("h1").inner_text()
        page.evaluate(AXE)
        assert violations(page) == []
        page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
        settled(page)
        assert page.locator("h1").inner_text() == heading
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
