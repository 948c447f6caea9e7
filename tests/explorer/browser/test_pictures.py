"""Photographs of many shapes in a real browser: clicks find the right token, and maps the right patches."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from patchsae.pipeline.saes.sae import load_sae
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store
from tests.explorer.browser.conftest import Site, served, settled
from tests.support import photo_store

PATCH = 8
TALL = (1280, 1600)
GRIDS = {"cropped": (4, 4), "squeezed": (4, 4), "oblong": (3, 5)}
MEAN, STD = (0.48145466, 0.4578275), (0.26862954, 0.26130258)
SHOWN = [("oblong", size) for size in range(len(photo_store.SIZES))] + [
    (sae, size) for sae in ("cropped", "squeezed") for size in (0, 1)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with photo_store.squeezing_is_known():
        yield photo_store.make(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def site(browser: Browser, store: Store) -> Iterator[Site]:
    with served(browser, store) as found:
        yield found


def images(store: Store) -> pl.DataFrame:
    [index] = store.committed("index")
    return index.scan("images").collect()


def shape_of(number: int) -> tuple[int, int]:
    """Width and height, as they are shown, of the photographs of `photo_store.SIZES[number]`."""
    width, height = photo_store.SIZES[number]
    return (height, width) if number == photo_store.TURNED else (width, height)


def places(sae: str, width: int, height: int) -> np.ndarray:
    """Where each pixel of a model's input comes from: (x, y) in pixels of a picture, float [rows, columns, 2].

    The model's own preprocessing is applied to a picture whose colours are the coordinates of its pixels.
    """
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    picture = Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))
    seen = photo_store.preprocessing(sae)(picture).numpy()
    return np.stack([(seen[i] * STD[i] + MEAN[i]) * 255 + 0.5 for i in range(2)], axis=2)


def press(page: Page, picture: Locator, x: float, y: float, width: int, height: int) -> None:
    """Clicks at a pixel of a picture of this size, wherever and however large it is shown."""
    box = picture.bounding_box()
    assert box is not None
    page.mouse.click(*spot(box, x, y, width, height))


def spot(box: Any, x: float, y: float, width: int, height: int) -> tuple[float, float]:
    """Where a pixel of a picture of this size is on the page, the picture filling `box`."""
    return float(box["x"] + box["width"] * x / width), float(box["y"] + box["height"] * y / height)


@pytest.mark.parametrize(("sae", "number"), SHOWN)
def test_a_click_at_a_pixel_gives_its_token_at_all_four_corners(
    site: Site, store: Store, sae: str, number: int
) -> None:
    width, height = shape_of(number)
    row = images(store).filter(width=width, height=height)["image"][0]
    rows, columns = GRIDS[sae]
    at = places(sae, width, height)
    with site.open(f"#/v/{site.view(sae)['key']}/image/{row}", size=TALL) as watched:
        page, picture = watched.page, watched.page.locator("[data-role=picture] .look")
        for down in (0, rows - 1):
            for across in (0, columns - 1):
                token = 1 + down * columns + across
                # The patch's pixels at the corners of the whole input and towards its middle.
                outer = (down * PATCH + (PATCH - 1) * (down > 0), across * PATCH + (PATCH - 1) * (across > 0))
                inner = (
                    down * PATCH + (PATCH - 1) * (down == 0),
                    across * PATCH + (PATCH - 1) * (across == 0),
                )
                press(page, picture, *at[outer], width, height)
                expect(picture).to_have_attribute("data-tokens", str(token))
                assert f"tokens={token}" in page.url
                # A second click on the same patch takes it back.
                press(page, picture, *at[inner], width, height)
                expect(picture).to_have_attribute("data-tokens", "")


def test_what_the_model_does_not_see_cannot_be_chosen(site: Site, store: Store) -> None:
    width, height = shape_of(0)
    row = images(store).filter(width=width, height=height)["image"][0]
    with site.open(f"#/v/{site.view('cropped')['key']}/image/{row}") as watched:
        picture = watched.page.locator("[data-role=picture] .look")
        for x in (1.0, width - 1.0):
            press(watched.page, picture, x, height / 2, width, height)
            expect(watched.page.locator("#tip")).to_have_text("outside of what the model sees")
            assert picture.get_attribute("data-tokens") == ""


def dragged_tokens(rows: range, columns: range, n_columns: int) -> str:
    return ",".join(str(1 + row * n_columns + column) for row in rows for column in columns)


def test_a_drag_chooses_a_rectangle_and_the_latents_there_are_those_of_the_code(
    site: Site, store: Store
) -> None:
    width, height = shape_of(1)
    row = images(store).filter(width=width, height=height)["image"][0]
    view = site.view("oblong")["key"]
    at = places("oblong", width, height)
    with site.open(f"#/v/{view}/image/{row}") as watched:
        page, picture = watched.page, watched.page.locator("[data-role=picture] .look")
        box = picture.bounding_box()
        assert box is not None
        start, end = (spot(box, *at[pixel], width, height) for pixel in ((4, 12), (20, 28)))
        page.mouse.move(*start)
        page.mouse.down()
        page.mouse.move(*end, steps=4)
        page.mouse.up()
        tokens = dragged_tokens(range(3), range(1, 4), 5)
        expect(picture).to_have_attribute("data-tokens", tokens)
        expect(page.locator("[data-role=concepts] h2")).to_contain_text("Latents at 9 tokens")
        shown = [int(one.get_attribute("data-latent") or -1) for one in page.locator("li.concept").all()]
    code = site.ask(f"codes/{view}/{row}")
    sums: dict[int, float] = {}
    for token, latent, value in zip(code["tokens"], code["latents"], code["values"], strict=True):
        if str(token) in tokens.split(","):
            sums[latent] = sums.get(latent, 0.0) + value
    assert shown == sorted(sums, key=lambda latent: -sums[latent])[: len(shown)]
    assert len(shown) > 1


def activations_of(store: Store, statistics: Artifact) -> Activations:
    return next(
        Activations(one)
        for one in store.committed("extract")
        if one.identity == statistics.manifest.inputs["activations"]
    )


def code_by_hand(store: Store, statistics: Artifact, image: int) -> torch.Tensor:
    """All latents of all tokens of an image: float32 [T, S], from the cached activations and the SAE's weights."""
    sae = load_sae(
        next(one for one in store.committed("train") if one.identity == statistics.manifest.inputs["sae"])
    )
    x = torch.from_numpy(np.asarray(activations_of(store, statistics).read(image, image + 1)))[0].float()
    h = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert sae.k is not None
    kept = h.topk(sae.k, dim=1)
    return torch.zeros_like(h).scatter(1, kept.indices, kept.values)


@pytest.mark.parametrize("sae", GRIDS)
def test_a_map_on_the_page_is_that_of_the_table_and_of_the_activations(
    site: Site, store: Store, sae: str
) -> None:
    view = site.view(sae)["key"]
    [statistics] = [one for one in store.committed("statistics") if one.key.startswith(view)]
    table = statistics.scan("latent_images").filter(pl.col("token") > 0).collect()
    first = table.sort("token_activation", descending=True).row(0, named=True)
    latent, image = first["latent"], first["image"]
    by_hand = code_by_hand(store, statistics, image)[:, latent].numpy()
    assert by_hand.argmax() == first["token"]
    np.testing.assert_allclose(by_hand.max(), first["token_activation"], rtol=1e-3)
    rows, columns = GRIDS[sae]
    with site.open(f"#/v/{view}/latent/{latent}?map=cells") as watched:
        page = watched.page
        canvas = page.locator(f"[data-role=top] figure[data-image='{image}'][data-map=cells] canvas")
        canvas.wait_for()
        seen = site.ask(f"image/{view}/{image}")["box"]
        alphas = np.array(canvas.evaluate(_ALPHAS, [seen, rows, columns]))
        told = []
        canvas.scroll_into_view_if_needed()
        place = canvas.bounding_box()
        assert place is not None
        for token in range(1, 1 + rows * columns):
            down, across = divmod(token - 1, columns)
            x = seen[0] + (seen[2] - seen[0]) * (across + 0.5) / columns
            y = seen[1] + (seen[3] - seen[1]) * (down + 0.5) / rows
            page.mouse.move(*spot(place, x, y, 1, 1))
            words = page.locator("#tip").inner_text()
            name, _, value = words.rpartition(": ")
            assert name == f"row {down + 1}, column {across + 1} (token {token})"
            told.append(float(value.replace(",", "")))
    np.testing.assert_allclose(told, by_hand[1:], rtol=1e-3)
    assert told[first["token"] - 1] == max(told)
    # Opacity grows with the activation, and is 0 where the latent is.
    np.testing.assert_array_equal(alphas > 0, by_hand[1:] > 0)
    assert (np.diff(alphas[np.argsort(by_hand[1:])]) >= 0).all()


_ALPHAS = """(canvas, [box, rows, columns]) => {
  const context = canvas.getContext("2d");
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const found = [];
  for (let i = 0; i < rows * columns; i++) {
    const x = box[0] + (box[2] - box[0]) * (i % columns + 0.5) / columns;
    const y = box[1] + (box[3] - box[1]) * (Math.floor(i / columns) + 0.5) / rows;
    found.push(pixels[4 * (Math.floor(y * canvas.height) * canvas.width + Math.floor(x * canvas.width)) + 3]);
  }
  return found;
}"""


def picture_file() -> bytes:
    """A photograph of one's own, larger than those of the dataset."""
    out = io.BytesIO()
    Image.linear_gradient("L").resize((300, 200)).convert("RGB").save(out, "JPEG")
    return out.getvalue()


def test_an_own_picture_is_opened_and_its_latents_are_those_of_the_python_api(
    site: Site, store: Store, tmp_path: Path
) -> None:
    import patchsae

    (tmp_path / "own.jpg").write_bytes(picture_file())
    encoded = patchsae.open(store.root).sae("cropped").encode(tmp_path / "own.jpg")
    expected = encoded.top(5)["latent"].to_list()
    with site.open(f"#/v/{site.view('cropped')['key']}/images") as watched:
        page = watched.page
        page.set_input_files("#upload", tmp_path / "own.jpg")
        page.wait_for_url("**/upload/**")
        settled(page)
        shown = [int(one.get_attribute("data-latent") or -1) for one in page.locator("li.concept").all()]
        picture = page.locator("[data-role=picture] .look img").first
        assert picture.evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == [300, 200]
    assert shown[: len(expected)] == expected


def test_a_picture_is_pasted_from_the_clipboard(site: Site) -> None:
    with site.open(f"#/v/{site.view('cropped')['key']}/images") as watched:
        page = watched.page
        page.evaluate(_PASTE)
        page.wait_for_url("**/upload/**")
        settled(page)
        assert page.locator("h1").inner_text() == "Your image"


_PASTE = """async () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 50, height: 40 });
  canvas.getContext("2d").fillRect(5, 5, 20, 20);
  const blob = await new Promise((give) => canvas.toBlob(give, "image/png"));
  const data = new DataTransfer();
  data.items.add(new File([blob], "pasted.png", { type: "image/png" }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
}"""


def test_a_file_that_is_no_picture_is_a_sentence_on_the_page(site: Site, tmp_path: Path) -> None:
    (tmp_path / "letter.jpg").write_text("Dear reader")
    with site.open(f"#/v/{site.view('cropped')['key']}/images") as watched:
        watched.page.set_input_files("#upload", tmp_path / "letter.jpg")
        said = watched.page.locator("[data-role=upload] [role=alert]")
        said.wait_for()
        assert len(said.inner_text()) > 20
        watched.expect("status of 400")


@pytest.mark.parametrize("page_of", ["home", "classes", "class/0", "class/1", "latent/0", "image/0"])
def test_names_of_classes_are_text_and_never_markup(site: Site, page_of: str) -> None:
    route = "#/" if page_of == "home" else f"#/v/{site.view('cropped')['key']}/{page_of}"
    with site.open(route) as watched:
        page = watched.page
        assert page.title() != "broken"
        assert page.locator("#page script, #page b").count() == 0
        if page_of in ("classes", "class/1"):
            assert photo_store.CLASSES[0 if page_of == "classes" else 1] in page.locator("#page").inner_text()
