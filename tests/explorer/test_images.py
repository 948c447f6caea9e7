"""Images, codes, maps, predictions and uploads of the explorer, against the tables, the cache and the models."""

from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

import patchsae
from patchsae.explorer import models, sources, uploads
from patchsae.explorer.library import Library
from patchsae.explorer.resources import images
from patchsae.pipeline.classification.classifier import load_classifier
from patchsae.pipeline.evaluations.gallery.embeddings import Embeddings
from patchsae.pipeline.results.backbones import recorded_backbone
from patchsae.pipeline.results.places import Place
from patchsae.pipeline.saes.encode import LatentEncoder
from patchsae.pipeline.saes.sae import load_sae
from patchsae.storage.activations import Activations, to_float32
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store
from tests.explorer.conftest import Open

EVALUATIONS = ("relu", "topk", "jump", "adapted")


@pytest.fixture
def client(explore: Open, shapes_store: Store) -> TestClient:
    return explore(shapes_store)


def view_of(client: TestClient, evaluation: str) -> str:
    views = client.get("/api/home").json()["views"]
    return str(next(view["key"] for view in views if view["evaluation"] == evaluation))


def ask(client: TestClient, path: str, body: Any = None, **query: Any) -> dict[str, Any]:
    if body is None:
        answer = client.get(f"/api/{path}", params=query)
    else:
        answer = client.post(f"/api/{path}", content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def inputs(store: Store, evaluation: str) -> tuple[Artifact, Artifact, Artifact]:
    """The statistics of an evaluation, its SAE and its activations."""
    node = store.records.current()["shapes"].nodes[f"statistics/{evaluation}"]
    statistics = store.at("statistics", node.key)
    by_key = {one.identity: one for stage in ("train", "extract") for one in store.committed(stage)}
    return (
        statistics,
        by_key[statistics.manifest.inputs["sae"]],
        by_key[statistics.manifest.inputs["activations"]],
    )


def activations_of(extracted: Artifact, rows: Sequence[int]) -> torch.Tensor:
    cached = Activations(extracted)
    return torch.from_numpy(
        np.stack([to_float32(cached.read(row, row + 1)[0], cached.dtype) for row in rows])
    )


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_maps_are_the_encoder_s_on_the_cached_values_and_the_tables(
    client: TestClient, shapes_store: Store, evaluation: str
) -> None:
    statistics, sae, extracted = inputs(shapes_store, evaluation)
    view = view_of(client, evaluation)
    layout = ask(client, f"view/{view}")["layout"]
    assert layout["suffix"] == (3 if evaluation == "adapted" else 0)
    top = statistics.scan("latent_images").collect()
    n_tokens = layout["prefix"] + layout["grid"][0] * layout["grid"][1]
    for latent in top["latent"].unique().sort().to_list()[:4]:
        found = ask(client, f"maps/{view}/{latent}")
        shown = top.filter(pl.col("latent") == latent)
        assert {int(image) for image in found["maps"]} >= set(shown["image"])
        rows = [int(image) for image in found["maps"]]
        x = activations_of(extracted, rows)[:, :n_tokens].flatten(0, 1)
        expected = LatentEncoder(load_sae(sae))(x)
        mine = expected.latent == latent
        whole = torch.zeros(len(x))
        whole[expected.token()[mine]] = expected.value[mine]
        values = np.array([found["maps"][str(row)] for row in rows])
        np.testing.assert_allclose(values, whole.view(len(rows), -1), rtol=1e-4, atol=1e-5)
        for row in shown.iter_rows(named=True):
            of_image = found["maps"][str(row["image"])]
            assert of_image[row["token"]] == pytest.approx(row["token_activation"], rel=1e-4)
            assert max(of_image) == pytest.approx(row["token_activation"], rel=1e-4)
            assert np.mean(of_image) == pytest.approx(row["activation"], rel=1e-3)
        assert found["max"] == pytest.approx(statistics.scan("latents").collect()["max_activation"][latent])
    only = ask(client, f"maps/{view}/{latent}", images="5,0,5")
    assert list(only["maps"]) == ["5", "0"]


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_codes_and_strongest_latents_are_the_encoder_s(
    client: TestClient, shapes_store: Store, evaluation: str
) -> None:
    statistics, sae, extracted = inputs(shapes_store, evaluation)
    view = view_of(client, evaluation)
    codes, image = ask(client, f"codes/{view}/7"), ask(client, f"image/{view}/7")
    x = activations_of(extracted, [7])[0, : codes["n_tokens"]]
    expected = LatentEncoder(load_sae(sae))(x)
    assert codes["n_left_out"] == 0 and codes["n_tokens"] == 65
    assert codes["tokens"] == expected.token().tolist() and codes["latents"] == expected.latent.tolist()
    np.testing.assert_allclose(codes["values"], expected.value, rtol=1e-4, atol=1e-5)
    dense = torch.zeros(65, 256)
    dense[expected.token(), expected.latent.long()] = expected.value
    means = dense.mean(dim=0)
    first = image["latents"][0]
    assert first["latent"] == int(means.argmax()) and first["activation"] == pytest.approx(
        float(means.max()), rel=1e-4
    )
    assert first["token"] == int(dense[:, first["latent"]].argmax())
    assert first["token_activation"] == pytest.approx(float(dense[:, first["latent"]].max()), rel=1e-4)
    row = statistics.scan("latents").collect().row(first["latent"], named=True)
    assert (first["frequency"], first["label_entropy"]) == (row["frequency"], row["label_entropy"])


def test_many_codes_are_cut_to_the_strongest(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(client, "relu")
    whole = ask(client, f"codes/{view}/7")
    monkeypatch.setattr(images, "_MOST_CODES", 40)
    cut = ask(client, f"codes/{view}/7?again")
    assert len(cut["values"]) == 40 and cut["n_left_out"] == len(whole["values"]) - 40
    assert sorted(cut["values"]) == pytest.approx(sorted(whole["values"])[-40:])


def test_an_image_is_told_with_its_truth_and_prediction(client: TestClient, shapes_store: Store) -> None:
    view = view_of(client, "relu")
    image = ask(client, f"image/{view}/3")
    [index] = shapes_store.committed("index")
    row = index.scan("images").collect().row(3, named=True)
    assert {name: image[name] for name in ("source", "label", "class_name", "split", "width")} == {
        name: row[name] for name in ("source", "label", "class_name", "split", "width")
    }
    assert image["truth"] is True and image["problem"] is None and image["box"] == [0, 0, 1, 1]
    assert {one["attribute"] for one in image["attributes"]} == {"colour", "texture", "background"}
    assert image["classes"] == [{"id": row["label"], "name": row["class_name"]}]
    p = [one["p"] for one in image["prediction"]]
    assert p == sorted(p, reverse=True) and sum(p) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("evaluation", ["relu", "adapted"])
def test_predictions_are_those_of_the_whole_model(
    client: TestClient, shapes_store: Store, evaluation: str
) -> None:
    _, sae, extracted = inputs(shapes_store, evaluation)
    view = view_of(client, evaluation)
    record = shapes_store.records.current()["shapes"]
    node = record.nodes[f"statistics/{evaluation}"]
    backbone = recorded_backbone(shapes_store, Place("shapes", record, node), extracted)
    [classifier] = [
        one
        for one in shapes_store.committed("classifier")
        if one.manifest.inputs["weights"] == extracted.manifest.inputs["weights"]
        and one.manifest.config.get("attribute") is None
    ]
    embeddings, scale = load_classifier(classifier)
    x = activations_of(extracted, [4])
    f = load_sae(sae).encode(x[0])
    latent = int(f[:65].sum(dim=0).argmax())
    changed = x.clone()
    changed[0, :65] += (7.0 - f[:65, latent])[:, None] * load_sae(sae).W_dec[latent]
    asked = {"image": 4, "edits": [{"latent": latent, "value": 7.0}]}
    found = ask(client, f"predict/{view}", asked)
    for which, of in (("before", x), ("after", changed)):
        with torch.inference_mode():
            features = torch.nn.functional.normalize(backbone.tail(of), dim=-1)
            logits = (scale * features @ embeddings.T)[0]
        assert [one["class"] for one in found[which]] == logits.argsort(descending=True)[:10].tolist()
        assert [one["logit"] for one in found[which]] == pytest.approx(
            logits.sort(descending=True).values[:10].tolist(), rel=1e-3, abs=1e-3
        )
    assert found["before"] == ask(client, f"image/{view}/4")["prediction"] != found["after"]
    assert found["flipped"] == (found["before"][0]["class"] != found["after"][0]["class"])
    nothing = ask(client, f"predict/{view}", {"image": 4})
    assert nothing["before"] == nothing["after"] and not nothing["flipped"]
    dropped = ask(client, f"predict/{view}", {"image": 4, "error": "dropped"})
    assert dropped["before"] == nothing["before"] != dropped["after"]


@pytest.mark.parametrize("evaluation", ["relu", "adapted", "by-lora", "by-probe"])
def test_an_upload_is_encoded_as_the_dataset_s_images_are(
    client: TestClient, shapes_store: Store, evaluation: str
) -> None:
    view = view_of(client, evaluation)
    library = Library(shapes_store)
    original = sources.originals(library, library.view(view)).image(9)
    name = ask(client, f"upload/{view}", png(original))["id"]
    own, cached = ask(client, f"upload/{view}/{name}"), ask(client, f"image/{view}/9")
    assert own["upload"] == name and own["image"] is None and own["box"] == cached["box"]
    both = [{one["latent"]: one["activation"] for one in found["latents"]} for found in (own, cached)]
    shared = both[0].keys() & both[1].keys()
    assert len(shared) > 0.8 * len(both[1])
    for latent in shared:
        assert both[0][latent] == pytest.approx(both[1][latent], rel=0.02, abs=0.02)
    if evaluation == "by-lora":
        assert (
            own["prediction"] == [] and "an evaluation of kind `masking` makes one" in own["prediction_why"]
        )
        return
    assert own["prediction"][0]["class"] == cached["prediction"][0]["class"]
    codes = ask(client, f"upload-codes/{view}/{name}")
    assert codes["n_tokens"] == 65 and len(codes["values"]) == len(codes["tokens"]) > 0
    asked = {"upload": name, "edits": [{"latent": own["latents"][0]["latent"], "value": 0, "tokens": [1, 2]}]}
    assert ask(client, f"predict/{view}", asked)["before"] == own["prediction"]
    picture = client.get(f"/picture/upload/{name}?size=640")
    assert Image.open(io.BytesIO(picture.content)).size == (64, 64)
    if evaluation == "relu":
        frame = patchsae.open(shapes_store.root).sae("relu", evaluation="relu").encode(original).top(5)
        assert [one["latent"] for one in own["latents"][:5]] == frame["latent"].to_list()


def test_neighbours_have_the_largest_cosines(client: TestClient, shapes_store: Store) -> None:
    _, sae, _ = inputs(shapes_store, "topk")
    rows = torch.nn.functional.normalize(load_sae(sae).W_dec, dim=1)
    found = ask(client, f"neighbours/{view_of(client, 'topk')}/11")["neighbours"]
    cosines = rows @ rows[11]
    cosines[11] = -2
    assert [one["latent"] for one in found] == cosines.argsort(descending=True)[:20].tolist()
    assert [one["cosine"] for one in found] == pytest.approx(
        cosines.sort(descending=True).values[:20].tolist(), rel=1e-4
    )


def test_words_find_latents_through_the_text_tower(client: TestClient, shapes_store: Store) -> None:
    view = view_of(client, "relu")
    assert ask(client, f"view/{view}")["words"] is True
    [gallery] = shapes_store.committed("gallery")
    held = Embeddings.read(gallery)
    assert held is not None
    record = shapes_store.records.current()["shapes"]
    place = Place("shapes", record, record.nodes["statistics/relu"])
    backbone = recorded_backbone(shapes_store, place, inputs(shapes_store, "relu")[2])
    texts = ["red circle", "a photo of red circle", "a photo", "an image", "a picture"]
    features = torch.nn.functional.normalize(backbone.encode_text(texts), dim=-1).numpy()
    expected = held.scores(features[:2].mean(axis=0), features[2:].mean(axis=0))
    found = ask(client, f"latents/{view}/rows", words="red circle", limit=5, columns="word_score")
    known = np.where(held.n_images > 0, expected, -np.inf)
    assert [row[0] for row in found["rows"]] == np.argsort(-known)[:5].tolist()
    assert [row[1] for row in found["rows"]] == pytest.approx(np.sort(-known)[:5] * -1, rel=1e-4)
    other = view_of(client, "topk")
    assert ask(client, f"view/{other}")["words"] is False
    for address, words, status, sentence in (
        (other, "red", 404, "words: no gallery of this view embedded images"),
        (view, "a unicorn", 400, "ShapesCLIP does not know the word 'unicorn'"),
    ):
        answer = client.get(f"/api/latents/{address}/rows", params={"words": words})
        assert answer.status_code == status and sentence in answer.json()["error"]


def test_images_flip_at_the_smallest_k_that_changes_their_prediction(
    client: TestClient, shapes_store: Store
) -> None:
    statistics, _, _ = inputs(shapes_store, "relu")
    view = view_of(client, "relu")
    pairs = statistics.scan("class_latents").collect()
    label = int(pairs["class"].mode()[0])
    ranked = (
        pairs.filter(pl.col("class") == label)
        .sort("n_tokens", "latent", descending=[True, False])["latent"]
        .to_list()
    )
    found = ask(client, f"flips/{view}/{label}", k="1,4,16,64,200")
    assert found["ks"] == [1, 4, 16, 64, 200] and found["images"]
    firsts = [one["first_k"] or 1000 for one in found["images"]]
    assert firsts == sorted(firsts) and firsts[0] < 1000
    for one in (found["images"][0], found["images"][-1]):
        assert one["label"] == label
        for k in found["ks"]:
            edits = [{"latent": s, "value": 0} for s in ranked[:k]]
            asked = {"image": one["image"], "edits": edits, "error": "dropped"}
            told = ask(client, f"predict/{view}", asked)["after"][0]["name"]
            assert told == (one["to"] if k == one["first_k"] else one["predicted"])
            if k == one["first_k"]:
                break


BAD: list[tuple[str, Any, int, str]] = [
    ("maps/VIEW/256", None, 404, "latent 256: this SAE has the latents 0 to 255."),
    ("neighbours/VIEW/x", None, 404, "latent x: this SAE has the latents 0 to 255."),
    ("maps/VIEW/3?images=80", None, 404, "image 80: the dataset has the rows 0 to 79."),
    ("maps/VIEW/3?images=" + ",".join(map(str, range(101))), None, 400, "images: names 101; ask for at most 100"),
    ("image/VIEW/80", None, 404, "image 80: the dataset has the rows 0 to 79."),
    ("codes/VIEW/-1", None, 404, "image -1: the dataset has the rows 0 to 79."),
    ("flips/VIEW/99", None, 404, "class 99"),
    ("flips/VIEW/1?k=0,x", None, 400, "k=0,x: write whole numbers from 1 to 200"),
    ("upload/VIEW/0123456789abcdef", None, 404, "upload 0123456789abcdef: this server does not have it"),
    ("upload-codes/VIEW/0123456789abcdef", None, 404, "upload 0123456789abcdef: this server does not have it"),
    ("upload/VIEW", b"", 400, "upload: has no bytes"),
    ("upload/VIEW", b"<html>no picture</html>", 400, "upload: cannot be shown: it is no image of the formats that are read"),
    ("upload/VIEW", png(Image.effect_noise((30, 30), 50))[:300], 400, "upload: cannot be shown: it is broken"),
    ("upload/VIEW", png(Image.new("1", (10_000, 10_000))), 400, "it has more than 50,000,000 pixels"),
    ("predict/VIEW", b"no json", 400, "predict: its body is no JSON"),
    ("predict/VIEW", {"image": 80}, 404, "image 80: the dataset has the rows 0 to 79."),
    ("predict/VIEW", {}, 400, "predict: give either `image` (a row) or `upload` (an id)."),
    ("predict/VIEW", {"image": 1, "upload": "a"}, 400, "predict: give either `image`"),
    ("predict/VIEW", {"upload": "a"}, 404, "upload a: this server does not have it"),
    ("predict/VIEW", {"image": 1, "edits": [{"latent": 256, "value": 0}]}, 400, "latent 256: this SAE has"),
    ("predict/VIEW", {"image": 1, "edits": [{"latent": 1, "value": "x"}]}, 400, "predict: `edits.0.value`"),
    ("predict/VIEW", {"image": 1, "edits": [{"latent": 1, "value": 0, "tokens": [65]}]}, 400, "token 65: an image has"),
    ("predict/VIEW", {"image": 1, "edits": [{"latent": 1, "value": 0}] * 501}, 400, "predict: `edits`"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status", "words"), BAD)
def test_bad_input_is_a_sentence(client: TestClient, path: str, body: Any, status: int, words: str) -> None:
    url = f"/api/{path.replace('VIEW', view_of(client, 'relu'))}"
    if body is None:
        answer = client.get(url)
    else:
        answer = client.post(url, content=body if isinstance(body, bytes) else json.dumps(body))
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]


def test_uploads_leave_when_there_are_too_many() -> None:
    kept = uploads.Uploads(max_bytes=3000)
    pictures = [png(Image.effect_noise((30, 30), 40 + i)) for i in range(6)]
    names = [kept.add(one) for one in pictures]
    assert kept.image(names[-1]).size == (30, 30) and kept.add(pictures[-1]) == names[-1]
    with pytest.raises(patchsae.UserError, match="this server does not have it"):
        kept.image(names[0])
    with pytest.raises(patchsae.UserError, match=r"has 40,000,001 bytes, and at most 40,000,000 are taken"):
        kept.add(bytes(40_000_001))


def test_damaged_and_missing_activations_are_told(shapes_store: Store, explore: Open, tmp_path: Path) -> None:
    store = Store(shutil.copytree(shapes_store.root, tmp_path / "store"))
    _, _, extracted = inputs(store, "relu")
    cached = Activations(extracted)
    shard = cached.shard_file(0)
    data = bytearray(shard.read_bytes())
    data[100] ^= 255
    shard.write_bytes(data)
    client = explore(store)
    view = view_of(client, "relu")
    answer = client.get(f"/api/codes/{view}/0")
    assert answer.status_code == 409 and "damaged" in answer.json()["error"]
    image = ask(client, f"image/{view}/0")
    assert "damaged" in image["problem"] and image["latents"] == [] and image["source"]
    shutil.rmtree(extracted.path)
    for path in (f"codes/{view}/0", f"maps/{view}/0?images=0"):
        answer = client.get(f"/api/{path}")
        assert answer.status_code == 404 and "run its experiment again" in answer.json()["error"]


def test_two_requests_load_a_model_once(shapes_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = models.recorded_backbone

    def counting(*arguments: Any) -> Any:
        loaded.append("backbone")
        return load(*arguments)

    monkeypatch.setattr(models, "recorded_backbone", counting)
    library = Library(shapes_store)
    view = library.views()[0]
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(models.backbone(library, view))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == ["backbone"] and len({id(one) for one in found}) == 1 and len(found) == 4
