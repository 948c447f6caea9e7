"""Pictures of the explorer, by chromium: `python -m docs.figures.explorer --demo STORE --adapted STORE`.

It writes explorer-latent.png from a store of the preset `demo`, and explorer-compare.png from one of the preset
`adaptation`. With `--all FOLDER` it writes every page of both stores there, light and dark, wide and narrow, to be
looked at after a change of the pages.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser

from patchsae.storage.store import Store
from tests.support.browser import NARROW, WIDE, chromium, tab
from tests.support.explored import explored

FIGURES = Path(__file__).parent
SIZE = (1280, 1000)
# A page is there with its data.
_SETTLED = 'body:not([data-state=loading])[data-pending="0"]'
_MILLISECONDS_FOR_PICTURES = 1200


def ask(url: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}api/{path}") as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def shape_latent(url: str, view: str) -> int:
    """A latent about one class that fires on about as many images as the class has, with the strongest top image."""
    columns = {
        name: ask(url, f"latents/{view}/column/{name}")["values"]
        for name in ("frequency", "label_entropy", "max_activation")
    }
    fits = [
        latent
        for latent, (frequency, entropy) in enumerate(
            zip(columns["frequency"], columns["label_entropy"], strict=True)
        )
        if 0.1 < frequency < 0.3 and entropy is not None and entropy < 0.3
    ]
    return max(fits, key=lambda latent: columns["max_activation"][latent])


def changed(url: str, remapping: str) -> float:
    """How many latents per class come or go in a remapping; 0 for images that are no rendered shapes."""
    found = ask(url, f"remapping/{remapping}")
    if not ask(url, f"view/{found['first']['key']}")["truth"]:
        return 0.0
    [row] = [one for one in found["summary"] if one["classes"] == "all"]
    return float(row["high_to_low_per_class"] + row["low_to_high_per_class"])


def pages(url: str) -> Iterator[tuple[str, str]]:
    """Every page of a store: its name and its address."""
    home = ask(url, "home")
    yield "home", "#/"
    yield "tables", "#/tables?sql=SELECT+*+FROM+latents+LIMIT+20"
    yield "comparisons", "#/compare"
    for sae in home["saes"][:1]:
        yield "sae", f"#/sae/{sae['key']}"
    for view in home["views"][:1]:
        key = view["key"]
        image = ask(url, f"image/{key}/3")
        strongest = image["latents"][0]["latent"]
        yield "latents", f"#/v/{key}/latents?where=frequency>0.01&sort=label_entropy"
        yield "latent", f"#/v/{key}/latent/{shape_latent(url, key)}"
        yield "images", f"#/v/{key}/images"
        yield "image", f"#/v/{key}/image/3?latents={strongest}&edits={strongest}:0"
        yield "classes", f"#/v/{key}/classes"
        yield "class", f"#/v/{key}/class/1"
    remappings = [one["key"] for one in home["comparisons"] if one["kind"] == "remapping"]
    if remappings:
        yield "remapping", f"#/compare/remapping/{max(remappings, key=lambda key: changed(url, key))}"
    for one in [one for one in home["comparisons"] if one["kind"] == "matching"][:1]:
        yield "matching", f"#/compare/matching/{one['key']}"


def shoot(
    browser: Browser, url: str, route: str, to: Path, size: tuple[int, int] = SIZE, **settings: Any
) -> None:
    """Writes a picture of a page as it is seen without scrolling, or all of it where `full` is set."""
    full = settings.pop("full", False)
    with tab(browser, url, size=size, **settings) as watched:
        watched.page.goto(url + route)
        watched.page.wait_for_selector(_SETTLED)
        watched.page.wait_for_timeout(_MILLISECONDS_FOR_PICTURES)
        watched.page.screenshot(path=to, full_page=full)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, help="a store of the preset `demo`")
    parser.add_argument("--adapted", type=Path, help="a store of the preset `adaptation`")
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="write every page of the stores there")
    chosen = parser.parse_args()
    with chromium() as browser:
        for name, kind, root in (
            ("explorer-latent", "latent", chosen.demo),
            ("explorer-compare", "remapping", chosen.adapted),
        ):
            if root is None:
                continue
            with explored(Store(root)) as url:
                found = dict(pages(url))
                if chosen.all is None:
                    to = FIGURES / f"{name}.png"
                    shoot(browser, url, found[kind], to)
                    # 256 colours are enough for it, in a third of the bytes.
                    Image.open(to).convert("RGB").quantize(256).save(to, optimize=True)
                    continue
                chosen.all.mkdir(parents=True, exist_ok=True)
                for page, route in found.items():
                    for theme in ("light", "dark"):
                        for size in (WIDE, NARROW):
                            to = chosen.all / f"{root.name}-{page}-{theme}-{size[0]}.png"
                            shoot(browser, url, route, to, size, theme=theme, full=True)


if __name__ == "__main__":
    main()
