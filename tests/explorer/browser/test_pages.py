"""Every page in a real browser, from the server and from a report's files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page, expect

from patchsae.explorer import models
from patchsae.explorer.library import Library
from patchsae.explorer.report.contents import Choice
from patchsae.explorer.report.write import Report
from patchsae.storage.store import Store
from tests.explorer.browser.conftest import Site, as_files, served, settled
from tests.support.browser import NARROW, WIDE

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text()
IMAGE = 3
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


def rows_of(page: Page, sheet: str) -> list[str]:
    """The first column of the rows of a table that are in sight."""
    page.wait_for_selector(f"#{sheet} tbody tr[data-latent]")
    return [
        str(one.get_attribute("data-latent")) for one in page.locator(f"#{sheet} tbody tr[data-latent]").all()
    ]


def test_the_state_of_a_page_comes_from_its_address(site: Site) -> None:
    view = site.view()["key"]
    where, state = (
        "n_images>3",
        "sort=-max_activation&x=max_activation&y=frequency&color=n_classes&columns=latent,max_activation",
    )
    with site.open(f"#/v/{view}/latents?where={where}&{state}") as watched:
        page = watched.page
        address = page.url
        shown = rows_of(page, "latents")
        expect(page.locator(".chips").first).to_contain_text("n images > 3")
        chosen = page.locator("[data-role=scatter] select").evaluate_all(
            "(all) => all.map((one) => one.value)"
        )
        assert chosen == ["max_activation", "frequency", "n_classes"]
        heads = page.locator("#latents thead th").all_inner_texts()
        page.goto(site.address + "#/")
        settled(page)
        page.go_back()
        settled(page)
        assert page.url == address
        assert rows_of(page, "latents") == shown
    column = {
        name: site.ask(f"latents/{view}/column/{name}")["values"] for name in ("n_images", "max_activation")
    }
    kept = [latent for latent, n in enumerate(column["n_images"]) if n > 3]
    kept.sort(key=lambda latent: -column["max_activation"][latent])
    assert shown == [str(latent) for latent in kept[: len(shown)]]
    assert [head.split("\n")[0].strip() for head in heads][:2] == ["latent", "max activation ↓"]


def test_a_rectangle_in_the_scatter_filters_the_table(site: Site) -> None:
    view = site.view()["key"]
    with site.open(f"#/v/{view}/latents?x=max_activation&y=label_entropy") as watched:
        page = watched.page
        rows_of(page, "latents")
        box = page.locator("[data-role=scatter] canvas").first.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 5)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 0.9 * box["height"], steps=4)
        page.mouse.up()
        page.wait_for_url("**where=**")
        settled(page)
        expect(page.locator(".lead").first).not_to_have_text("512 latents")
        matched = page.locator(".lead").first.inner_text()
        shown = {int(latent) for latent in rows_of(page, "latents")}
        low = float(re.findall(r"max_activation(?:>=|%3E%3D|%3E=)([\d.e+-]+)", page.url)[0])
    values = site.ask(f"latents/{view}/column/max_activation")["values"]
    assert low > min(values)
    assert all(values[latent] >= low for latent in shown)
    assert int(matched.split()[0]) < 512


def test_keys_search_step_and_help(site: Site) -> None:
    view, latent = site.view()["key"], frequent(site)
    following = site.ask(f"latent/{view}/{latent}")["next"]
    held = site.home.get("report", {}).get("latents", {}).get(view, [following])
    with site.open(f"#/v/{view}/latent/{latent}") as watched:
        page = watched.page
        page.keyboard.press("?")
        expect(page.locator("dialog")).to_contain_text("next latent")
        page.keyboard.press("Escape")
        expect(page.locator("dialog")).to_have_count(0)
        if following in held:
            page.keyboard.press("ArrowRight")
            expect(page.locator("h1")).to_have_text(f"Latent {following}")
        page.keyboard.press("/")
        page.keyboard.type("three")
        expect(page.locator("#found")).to_contain_text("three")
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("three")


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("#/v/{view}/latent/99999", "latent 99999: this SAE has the latents 0 to 511."),
        ("#/v/0123456789abcdef/latents", "view 0123456789abcdef: is not in this store"),
        ("#/v/{view}/class/77", "class 77: there is no such class"),
        ("#/v/{view}/image/123456", "image 123456: the dataset has the rows 0 to"),
        ("#/compare/remapping/0123456789abcdef", "remapping 0123456789abcdef: is not in this store"),
        ("#/nowhere", "There is no page at this address."),
        ("#/tables?sql=SELECT+nothing+FROM+latents", "nothing"),
        ("#/tables?sql=SELECT+*+FROM+read_csv('/etc/passwd')", "read_csv"),
    ],
)
def test_what_is_not_there_is_a_sentence_and_never_a_blank_page(
    server: Site, where: str, sentence: str
) -> None:
    with server.open(where.format(view=server.view()["key"])) as watched:
        expect(watched.page.locator("#page")).to_contain_text(sentence)
        watched.faults = [
            one for one in watched.faults if "the server responded with a status of 4" not in one
        ]


def test_what_a_report_left_out_is_a_sentence_without_a_request(report: Site) -> None:
    view = report.view()["key"]
    left_out = next(latent for latent in range(512) if latent not in report.home["report"]["latents"][view])
    with report.open(f"#/v/{view}/latent/{left_out}") as watched:
        expect(watched.page.locator("#page")).to_contain_text("This report does not hold that part")


def test_a_damaged_artifact_is_named_with_its_remedy(
    browser: Browser, small_store: Store, tmp_path: Path
) -> None:
    store = Store(shutil.copytree(small_store.root, tmp_path / "store"))
    [statistics] = store.committed("statistics")
    (statistics.path / "manifest.json").write_text("{")
    with served(browser, store) as site, site.open("#/") as watched:
        expect(watched.page.locator("[role=alert]")).to_contain_text(statistics.key[:16])
        watched.page.goto(f"{site.address}#/v/{statistics.key[:16]}/latents")
        expect(watched.page.locator("#page")).to_contain_text("patchsae")
        watched.expect("status of 409")


def test_a_prediction_with_a_latent_off_is_that_of_the_backbone_s_tail(
    server: Site, small_store: Store
) -> None:
    view = server.view()["key"]
    shown = server.ask(f"image/{view}/{IMAGE}")
    latent = shown["latents"][0]["latent"]
    library = Library(small_store)
    found = library.view(view)
    sae, zero_shot = models.sae(library, found), models.zero_shot(library, found)
    x = torch.from_numpy(models.activations(found).read(IMAGE, IMAGE + 1)).float()
    f = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)[..., latent]
    with torch.inference_mode():
        p = zero_shot.logits(x - f[..., None] * sae.W_dec[latent])[0].softmax(0)
    with server.open(f"#/v/{view}/image/{IMAGE}?edits={latent}:0") as watched:
        expect(watched.page.locator("[data-role=verdict]")).to_contain_text("after")
        bars = watched.page.locator("[data-role=prediction] [data-class]")
        told = {
            int(str(one.get_attribute("data-class"))): one.inner_text().split()[-2:] for one in bars.all()
        }
    assert len(told) >= 3
    for label, words in told.items():
        share = 100 * float(p[label])
        # Less than that is written `< 0.1 %`.
        assert words == ["0.1" if share < 0.05 else f"{share:.1f}", "%"]


COMPARED = {
    "latents": "#/v/{view}/latents?where=n_images>3&sort=-max_activation",
    "latent": PAGES["latent"],
    "class": PAGES["class"],
    "remapping": PAGES["remapping"],
    "matching": PAGES["matching"],
}


@pytest.mark.parametrize("name", COMPARED)
def test_a_report_shows_the_numbers_of_the_server(server: Site, report: Site, name: str) -> None:
    path = route(report, name).partition("?")[0] + ("?" + COMPARED[name].partition("?")[2]).rstrip("?")
    told = []
    for site in (server, report):
        with site.open(path) as watched:
            page = watched.page
            page.wait_for_selector("#page table tbody tr, #page .facts")
            # How many rows of a long table are drawn depends on its place.
            tables = page.locator("#page .facts, #page table").all_inner_texts()
            numbers = [text.split("\n")[:15] for text in tables]
            captions = page.locator("[data-role=top] figcaption").all_inner_texts()[:4]
            told.append((page.locator("h1").inner_text(), numbers, captions))
    assert told[0] == told[1]
    assert any(character.isdigit() for lines in told[0][1] for character in lines[-1])
