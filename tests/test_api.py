"""The Python API: its doctests, and what it says of a store with photographs and two SAEs."""

from __future__ import annotations

import doctest
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import patchsae
from patchsae import api
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.activations import Activations
from patchsae.storage.store import Store
from patchsae.storage.tokens import TokenLayout

SAE = "kind: topk, k: 4, n_latents: 48, batch_size: 128, n_steps: 5, backbone: clip"
DEMO = f"""
name: demo
datasets: {{shapes: {{kind: shapes, seed: 1, splits: {{train: 24, test: 12}}, label: colour}}}}
backbones: {{clip: {{kind: shapes_clip}}}}
saes: {{relu: {{{SAE}, dataset: shapes}}}}
evaluations:
  statistics: {{kind: statistics, sae: relu}}
  masking: {{kind: masking, statistics: statistics, ks: [1], n_random: 1}}
"""
PHOTOS = f"""
name: photos
datasets: {{{{photos: {{{{kind: image_folder, root: {{root!r}}}}}}}}}}
backbones: {{{{clip: {{{{kind: shapes_clip}}}}}}}}
saes:
  one: {{{{{SAE}, dataset: photos}}}}
  other: {{{{{SAE}, dataset: photos, seed: 3}}}}
evaluations:
  of-one: {{{{kind: statistics, sae: one}}}}
  of-one-too: {{{{kind: statistics, sae: one, split: test}}}}
  of-other: {{{{kind: statistics, sae: other}}}}
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("demo") / "store")
    run(work_on(store, parse(DEMO, "demo")), Runtime())
    return store.root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two sizes, one of them grey, in a folder with a space."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("photos") / "my photos"
    for i in range(12):
        path = folder / f"class {i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (60, 80) if i == 0 else (50 + i, 40, 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def photos(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> api.OpenStore:
    store = Store(tmp_path_factory.mktemp("photos store") / "a store")
    run(work_on(store, parse(PHOTOS.format(root=str(folder)), "photos")), Runtime())
    return patchsae.open(store.root)


def test_doctests(demo: Path) -> None:
    found = doctest.testmod(
        api, extraglobs={"STORE": str(demo), "pl": pl, "patchsae": patchsae}, optionflags=doctest.ELLIPSIS
    )
    assert found.failed == 0 and found.attempted > 10


def test_the_example_of_the_page_prints_what_the_page_says(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[1] / "docs" / "api.md"
    [example] = re.findall(r"```pycon\n(.*?)```", page.read_text(), flags=re.DOTALL)
    (tmp_path / "store").symlink_to(demo)
    Image.new("RGB", (50, 40), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner()
    runner.run(doctest.DocTestParser().get_doctest(example, {}, page.name, str(page), 0))
    assert runner.summarize().failed == 0 and runner.tries > 5


def test_a_store_is_opened_by_the_environment_or_refused(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHSAE_STORE", str(demo))
    assert patchsae.open().experiments == ["demo"]
    with pytest.raises(patchsae.UserError, match="no store here"):
        patchsae.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_top_images_name_files(photos: api.OpenStore, folder: Path) -> None:
    other = photos.sae("other")
    latent = int(other.latents.filter(~pl.col("dead")).sort("frequency").collect()["latent"][-1])
    top = other.top_images(latent, 3)
    assert top["rank"].to_list() == [1, 2, 3] and top["activation"].is_sorted(descending=True)
    for row in top.iter_rows(named=True):
        assert Path(row["path"]).is_file() and row["path"] == str(folder / row["source"])
        assert row["class_name"] == Path(row["path"]).parent.name


def test_own_images_have_the_latents_of_the_cached_ones(photos: api.OpenStore, folder: Path) -> None:
    other = photos.sae("other")
    images = photos.artifact("index/photos").scan("images").collect()
    encoded = other.encode(folder)
    assert encoded.images == sorted(encoded.images) and len(encoded.images) == 12
    for row in images.head(4).iter_rows(named=True):
        path = str(folder / row["source"])
        own = encoded.frame.filter(pl.col("image") == path).drop("image")
        cached = other.encode_row(row["image"]).frame.drop("image")
        # float16 in the cache, float32 here: the same but for latents near the fourth largest.
        both = own.join(cached, on=["token", "latent"])
        assert both.height > 0.95 * max(own.height, cached.height)
        np.testing.assert_allclose(both["activation"], both["activation_right"], rtol=2e-2, atol=2e-2)
    top = encoded.top(2)
    assert top.group_by("image").len()["len"].to_list() == [2] * 12


def test_prompt_tokens_are_no_part_of_an_image(photos: api.OpenStore, folder: Path) -> None:
    other = photos.sae("other")
    activations = Activations(photos.artifact("extract/photos-clip"))
    x = torch.from_numpy(activations.read(0, 2)).float()
    whole = api.EncodedImages(other._rows(x, [0, 1], activations.layout), [0, 1], activations.layout)
    # The last row of eight patches is called prompt tokens.
    layout = TokenLayout(1, (7, 8), 8)
    own = api.EncodedImages(other._rows(x, [0, 1], layout), [0, 1], layout)
    assert whole.frame["token"].max() > 56 == own.frame["token"].max()
    assert own.frame.equals(whole.frame.filter(pl.col("token") < 57))
    latent = own.top(1)["latent"][0]
    found = own.frame.filter(pl.col("image") == 0, pl.col("latent") == latent)["activation"]
    assert own.top(1)["activation"][0] == pytest.approx(found.sum() / 57)
    np.testing.assert_array_equal(own.map(0, latent), whole.map(0, latent)[:7])


def test_maps_are_the_latents_of_the_patches(photos: api.OpenStore, folder: Path) -> None:
    other, path = photos.sae("other"), folder / "class 0" / "0.png"
    encoded = other.encode(path)
    latent = int(encoded.top(1)["latent"][0])
    found = other.map(path, latent)
    assert found.shape == (8, 8) and found.dtype == np.float32
    of_patches = encoded.frame.filter(pl.col("latent") == latent, pl.col("token") > 0)
    assert found.sum() == pytest.approx(of_patches["activation"].sum(), rel=1e-5)
    np.testing.assert_array_equal(other.map(Image.open(path), latent), found)


def test_two_of_something_must_be_told_apart(photos: api.OpenStore) -> None:
    with pytest.raises(
        patchsae.UserError, match=r"several evaluations \(photos: of-one, photos: of-one-too\); name one"
    ):
        _ = photos.sae("one").latents
    assert photos.sae("one", evaluation="of-one-too").statistics == photos.artifact("statistics/of-one-too")
    with pytest.raises(patchsae.UserError, match=r"sae tow: .*\(there are one, other\)"):
        photos.sae("tow")
    assert sorted(photos.saes["sae"]) == ["one", "other"]


def test_saes_are_compared_by_name(photos: api.OpenStore) -> None:
    found = photos.compare("one", "other")
    a, b = (photos.sae(name).weights.W_dec for name in ("one", "other"))
    cosines = (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T
    np.testing.assert_array_equal(found["match"], cosines.argmax(dim=1))
    np.testing.assert_allclose(found["cosine"], cosines.max(dim=1).values, rtol=1e-5)
    assert found["mutual"].to_list() == [
        int(cosines[:, m].argmax()) == i for i, m in enumerate(found["match"])
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda sae, _: sae.top_images(48), r"latent 48: other has the latents 0 to 47"),
        (lambda sae, _: sae.map(99, 0), r"image 99: the dataset has the rows 0 to 11"),
        (lambda sae, folder: sae.encode(folder / "none.png"), r"none\.png: cannot be read as an image"),
        (lambda sae, folder: sae.encode(folder / "empty"), r"empty: no images found below it"),
    ],
)
def test_bad_input_is_one_sentence(photos: api.OpenStore, tmp_path: Path, call: object, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(patchsae.UserError, match=message):
        call(photos.sae("other"), tmp_path)  # type: ignore[operator]


def test_nothing_is_written(photos: api.OpenStore, folder: Path) -> None:
    def files() -> set[tuple[str, int]]:
        return {(str(p), p.stat().st_mtime_ns) for p in photos.store.root.rglob("*") if p.is_file()}

    before = files()
    photos.sae("other").encode(folder / "class 0" / "0.png")
    photos.query("SELECT count(*) FROM latents")
    assert files() == before


def test_images_given_twice_stay_two(photos: api.OpenStore, folder: Path) -> None:
    path, other = folder / "class 0" / "0.png", photos.sae("other")
    encoded = other.encode([path, folder / "class 1" / "1.png", path])
    assert encoded.images == [str(path), str(folder / "class 1" / "1.png"), f"{path} (2)"]
    once, again = (encoded.top(1).filter(pl.col("image") == name) for name in (str(path), f"{path} (2)"))
    assert once.drop("image").equals(again.drop("image"))
    with pytest.raises(patchsae.UserError, match="no images were given"):
        other.encode([])


def test_an_sae_that_two_experiments_have(photos: api.OpenStore, folder: Path, tmp_path: Path) -> None:
    store = Store(shutil.copytree(photos.store.root, tmp_path / "store"))
    moved = Path(shutil.copytree(folder, tmp_path / "moved photos"))
    text = PHOTOS.format(root=str(moved)).replace("name: photos", "name: again")
    # Only the SAE, and statistics of fewer images.
    text = (
        text[: text.index("evaluations:")] + "evaluations: {few: {kind: statistics, sae: other, limit: 3}}\n"
    )
    run(work_on(store, parse(text, "again")), Runtime())
    opened = patchsae.open(store.root)
    assert opened.sae("other").artifact.key == photos.sae("other").artifact.key
    with pytest.raises(patchsae.UserError, match=r"several evaluations \(again: few, photos: of-other\)"):
        _ = opened.sae("other").latents
    # Each experiment says where the images are.
    for experiment, root in (("again", moved), ("photos", folder)):
        sae = opened.sae("other", experiment)
        latent = int(sae.latents.filter(~pl.col("dead")).collect()["latent"][0])
        assert sae.top_images(latent)["path"][0].startswith(str(root))
    assert opened.sae("one", "again").encode(folder / "class 0" / "0.png").frame.height


def test_other_weights_in_the_file_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(tiny_checkpoint, weights)
    text = DEMO.replace(
        "{kind: shapes_clip}", f"{{kind: open_clip, model: patchsae-tiny, checkpoint: {str(weights)!r}}}"
    )
    store = Store(tmp_path / "store")
    run(work_on(store, parse(text, "demo")), Runtime())
    state = load_file(weights)
    image = Image.new("RGB", (32, 32), (200, 10, 10))
    patchsae.open(store.root).sae("relu").encode(image)
    save_file({name: tensor + 1 for name, tensor in state.items()}, weights)
    with pytest.raises(patchsae.UserError, match="digest"):
        patchsae.open(store.root).sae("relu").encode(image)
    run(work_on(store, parse(text, "demo"), only=["weights"]), Runtime())
    # The run looked at the new weights, and the SAE of these has not been trained.
    with pytest.raises(patchsae.UserError, match="sae relu: demo names it, but it has not been built"):
        patchsae.open(store.root).sae("relu")


def test_pictures_have_the_map_where_it_belongs(photos: api.OpenStore, folder: Path) -> None:
    other, path = photos.sae("other"), folder / "class 0" / "0.png"
    encoded = other.encode(path)
    latent = int(encoded.top(1)["latent"][0])
    own, of_sae = encoded.picture(latent), other.picture(path, latent)
    assert own.size == of_sae.size == (320, 240)
    row = photos.artifact("index/photos").scan("images").filter(source="class 0/0.png").collect()["image"][0]
    cached = np.asarray(other.picture(int(row), latent), int)
    # Of one photograph from two sources: float16 in the cache.
    assert np.abs(cached - np.asarray(of_sae, int)).mean() < 3
    # What is left and right of the square that the model sees is dimmed.
    plain = np.asarray(Image.open(path).convert("RGB").resize((320, 240)), int)
    assert np.asarray(own, int)[:, :35].mean() < 0.5 * plain[:, :35].mean()


def test_latents_of_a_patch_are_those_of_its_token(photos: api.OpenStore, folder: Path) -> None:
    encoded = photos.sae("other").encode([folder / "class 0" / "0.png", folder / "class 1" / "1.png"])
    for image in (None, encoded.images[1]):
        found = encoded.at(2, 5, image)
        of_token = (pl.col("image") == (image or encoded.images[0])) & (pl.col("token") == 1 + 2 * 8 + 5)
        assert found["latent"].to_list() == (
            encoded.frame.filter(of_token).sort("activation", descending=True)["latent"].to_list()
        )
        assert found.height == 4
    for patch, words in (((8, 0), "patch 8, 0: an image has 8 rows of 8 patches"), ((0, -1), "patch 0, -1")):
        with pytest.raises(patchsae.UserError, match=words):
            encoded.at(*patch)
    with pytest.raises(patchsae.UserError, match="image no: was not encoded; there are"):
        encoded.picture(3, "no")


def test_galleries_outline_the_strongest_patch_and_leave_out_what_is_gone(
    photos: api.OpenStore, folder: Path, tmp_path: Path
) -> None:
    other = photos.sae("other")
    latent = int(other.latents.filter(~pl.col("dead")).sort("frequency").collect()["latent"][-1])
    found = other.gallery(latent, 3)
    assert len(found.images) == len(found.captions) == 3 and "gone" not in found.title
    source = other.top_images(latent)["source"][0]
    assert found.captions[0].startswith(source) and found.sheet().width > 900
    moved = tmp_path / "moved.png"
    shutil.move(folder / source, moved)
    try:
        left = other.gallery(latent, 3)
    finally:
        shutil.move(moved, folder / source)
    assert len(left.images) == 2 and left.title.endswith("(1 picture is gone)")


def test_notebooks_show_html_that_stands_alone(photos: api.OpenStore, demo: Path, folder: Path) -> None:
    other = photos.sae("other")
    encoded = other.encode(Image.open(folder / "class 0" / "0.png"))
    latent = int(encoded.top(1)["latent"][0])
    for shown, words in (
        (photos, ["<td>other</td>", "<td>photos</td>"]),
        (other, ["OpenSae(other of photos", "<td>n_latents</td><td>48</td>"]),
        (other.gallery(latent, 2), ["data:image/webp;base64,", "class "]),
        (encoded, ["image 0", f"latent {latent}: ", "data:image/webp;base64,"]),
        (patchsae.open(demo).sae("relu").encode_row(0), ["data:image/webp;base64,"]),
    ):
        text = shown._repr_html_()  # type: ignore[attr-defined]
        assert all(word in text for word in words), text[:300]
        assert "http" not in text and "<script" not in text


def test_masking_is_that_of_the_sae(demo: Path) -> None:
    store = patchsae.open(demo)
    rows = store.sae("relu").masking.collect()
    assert rows.height == store.table("masking").collect().height > 0
    assert rows.filter(pl.col("class_name") == "red").height > 0
