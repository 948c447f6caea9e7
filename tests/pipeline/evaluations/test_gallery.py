"""The gallery of latents against dense oracles: every image, token and pair is looked at one by one."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

from patchsae.pipeline.backbones.models.shapes_clip import ShapesClipConfig
from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.evaluations.gallery import cofiring as cofiring_module
from patchsae.pipeline.evaluations.gallery import merge
from patchsae.pipeline.evaluations.gallery.cofiring import cofiring, groups_of
from patchsae.pipeline.evaluations.gallery.embeddings import NEUTRAL, PHRASES, Embeddings, mean_embeddings
from patchsae.pipeline.evaluations.gallery.settings import GallerySettings
from patchsae.pipeline.evaluations.gallery.tables import bin_edges
from patchsae.pipeline.evaluations.kinds.gallery import STAGE, GalleryConfig, GalleryStageConfig
from patchsae.pipeline.evaluations.kinds.statistics import STAGE as STATISTICS
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.pipeline.experiment.experiment import Experiment, parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.images.datasets.shapes import ShapesConfig
from patchsae.pipeline.saes.sae import load_sae
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.nodes import plan, run_all
from tests.support.sae_inputs import SmallWorld, run

N, EMBEDDED, BANDS = 60, 40, ((0.9, 1.0), (0.4, 0.6), (0.0, 0.2))
EXPERIMENT = """
name: gallery
datasets: {{digits: {{kind: digits, n_images: 160}}}}
backbones: {{clip: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}}}
saes: {{topk: {{kind: topk, k: 4, n_latents: 64, batch_size: 128, n_steps: 30, dataset: digits, backbone: clip}}}}
evaluations:
  statistics: {{kind: statistics, sae: topk, tokens: patches}}
  gallery: {{kind: gallery, statistics: statistics, n_images: 60, n_embedded: 40, n_per_band: 3, n_cofiring: 5,
             n_cofiring_tokens: 500, bands: [[0.9, 1], [0.4, 0.6], [0, 0.2]]}}
  plain: {{kind: gallery, statistics: statistics, n_embedded: 0}}
"""


@pytest.fixture(scope="module")
def experiment(tiny_checkpoint: Path) -> Experiment:
    return parse(EXPERIMENT.format(checkpoint=str(tiny_checkpoint)), "gallery")


@pytest.fixture(scope="module")
def done(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return run_all(Store(tmp_path_factory.mktemp("gallery") / "store"), experiment.nodes())


@pytest.fixture(scope="module")
def f(done: dict[str, Artifact]) -> np.ndarray:
    """The latents of the patches of the sample's images: [N, T, S]."""
    x = torch.from_numpy(Activations(done["extract/digits-clip"]).read(0, N)[:, 1:]).float()
    with torch.inference_mode():
        return load_sae(done["train/topk"]).encode(x.flatten(0, 1)).unflatten(0, x.shape[:2]).numpy()


def test_examples_come_from_their_bands_and_as_many_as_asked_for(
    done: dict[str, Artifact], f: np.ndarray
) -> None:
    table = done["gallery/gallery"].scan("latent_examples").collect()
    labels = done["index/digits"].scan("images").collect()["label"].to_numpy()
    mean = f.mean(axis=1)
    n_seen = 0
    for latent, (low, high) in itertools.product(range(f.shape[2]), BANDS):
        rows = table.filter(latent=latent).filter((pl.col("low") - low).abs() < 1e-6)
        fired = np.flatnonzero(mean[:, latent] > 0)
        ordered = fired[np.argsort(mean[fired, latent], kind="stable")]
        n = len(ordered)
        inside = [int(i) for r, i in enumerate(ordered) if r / n < high - 1e-9 and (r + 1) / n > low + 1e-9]
        assert rows.height == min(3, len(inside)) and (n == 0 or inside)
        assert set(rows["image"]) <= set(inside) and rows["image"].n_unique() == rows.height
        assert rows["rank"].to_list() == list(range(1, rows.height + 1))
        assert rows["activation"].is_sorted(descending=True)
        assert rows["high"].to_list() == pytest.approx([high] * rows.height)
        for row in rows.iter_rows(named=True):
            image = row["image"]
            assert row["activation"] == pytest.approx(mean[image, latent], rel=1e-4)
            assert row["token"] == f[image, :, latent].argmax() + 1
            assert row["token_activation"] == pytest.approx(f[image, :, latent].max(), rel=1e-4)
            assert row["label"] == labels[image]
        n_seen += rows.height
    assert n_seen == table.height > 100
    assert table["latent"].is_sorted()


def test_histograms_count_every_token_above_zero(done: dict[str, Artifact], f: np.ndarray) -> None:
    table = done["gallery/gallery"].scan("latent_histograms").collect()
    low, high = bin_edges()
    assert low[0] == 2.0**-14 and high[-1] == 2.0**10 and np.array_equal(low[1:], high[:-1])
    assert np.allclose(np.diff(np.log2(low[::4])), 1)
    expected = []
    for latent in range(f.shape[2]):
        values = f[..., latent][f[..., latent] > 0]
        counts, _ = np.histogram(values, np.append(low, high[-1]))
        assert counts.sum() == len(values)
        expected += [(latent, low[b], high[b], counts[b]) for b in np.flatnonzero(counts)]
    assert table.drop("artifact").rows() == [(s, float(a), float(b), int(n)) for s, a, b, n in expected]
    assert done["gallery/gallery"].manifest.summary["n_alive"] == len({row[0] for row in expected})


def test_cofiring_is_that_of_the_drawn_tokens(done: dict[str, Artifact], f: np.ndarray) -> None:
    gallery = done["gallery/gallery"]
    settings = GallerySettings(n_cofiring_tokens=500)
    l0 = float(done["statistics/statistics"].manifest.summary["l0"] or 0)
    drawn = settings.drawn_tokens(N, f.shape[1], settings.share_of_tokens(N * f.shape[1], l0))
    on = f[drawn] > 0
    assert gallery.manifest.summary["n_drawn_tokens"] == len(on) and 400 < len(on) < 600
    expected = []
    for latent in range(f.shape[2]):
        of_latent = []
        for other in range(f.shape[2]):
            both, either = (on[:, latent] & on[:, other]).sum(), (on[:, latent] | on[:, other]).sum()
            if other != latent and both:
                of_latent.append((-both / either, other, both))
        for rank, (jaccard, other, both) in enumerate(sorted(of_latent)[:5], 1):
            n, m = on[:, latent].sum(), on[:, other].sum()
            expected.append((latent, rank, other, both, n, m, -jaccard, both * len(on) / (n * m)))
    table = gallery.scan("cofiring").drop("artifact").collect()
    np.testing.assert_allclose(table.to_numpy(), np.array(expected, float), rtol=1e-6)
    assert table.height > 100


def test_an_embedding_is_the_weighted_mean_of_unit_features(
    experiment: Experiment, done: dict[str, Artifact], f: np.ndarray
) -> None:
    x = torch.from_numpy(Activations(done["extract/digits-clip"]).read(0, EMBEDDED)).float()
    inputs = {"weights": done["weights/clip"]}
    backbone = load_backbone(experiment.backbones["clip"], inputs, "cpu")
    with torch.inference_mode():
        v = normalize(backbone.tail(x), dim=-1).numpy()
    weight = f[:EMBEDDED].mean(axis=1)
    found = Embeddings.read(done["gallery/gallery"])
    assert found is not None
    np.testing.assert_allclose(found.mean, v.mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(found.n_images, (weight > 0).sum(axis=0))
    total = weight.sum(axis=0)[:, None]
    expected = np.divide(weight.T @ v, total, out=np.zeros((f.shape[2], v.shape[1])), where=total > 0)
    np.testing.assert_allclose(found.embedding, expected, atol=1e-3)
    assert np.linalg.norm(found.embedding.astype(float), axis=1).max() <= 1.001
    assert (found.n_images > 1).any() and (found.n_images == 0).any()


def test_without_embedded_images_no_weights_are_needed(
    experiment: Experiment, done: dict[str, Artifact]
) -> None:
    assert Embeddings.read(done["gallery/plain"]) is None
    [node] = [node for node in experiment.nodes() if node.address == "gallery/plain"]
    assert "weights" not in node.inputs
    # All images of the split, since there are fewer than the sample may have.
    n_train = done["index/digits"].scan("images").filter(split="train").collect().height
    assert done["gallery/plain"].manifest.summary["n_images"] == n_train > N


def test_embeddings_are_no_table(done: dict[str, Artifact]) -> None:
    folder = done["gallery/gallery"].path
    assert {path.name for path in (folder / "tables").iterdir()} == {
        "latent_examples.parquet",
        "latent_histograms.parquet",
        "cofiring.parquet",
    }
    assert (folder / "embeddings.safetensors").is_file()


def test_a_score_is_a_cosine_that_few_images_make_smaller() -> None:
    embedding = np.array([[3, 0], [1, 2], [1, -1], [0, 0]], np.float16)
    held = Embeddings(embedding, np.array([10, 90, 10, 0], np.int32), np.array([1, 0], np.float32))
    found = held.scores(np.array([0.5, 1.0]), np.array([0.5, 0.0]))
    np.testing.assert_allclose(found, [0, 0.9, -0.5, np.nan], atol=1e-6)


def test_words_find_the_latents_of_what_they_name() -> None:
    """Latents that fire on the images of one value each, so that what they should be found by is known."""
    images = ShapesConfig(seed=5, splits={"test": 400}).build()
    records = images.records()
    backbone = ShapesClipConfig().build({})
    with torch.inference_mode():
        x = torch.stack([backbone.preprocess(images.decode(images.read(one))) for one in records])
        v = normalize(backbone.tail(backbone.head(x)), dim=-1).numpy()
    values = [
        (attribute, value)
        for attribute in ("shape", "colour", "background")
        for value in images.attribute_values(attribute)
    ]
    fires = [
        [images.attribute_values(a)[images.attribute_labels(a, one.source)[0]] == value for one in records]
        for a, value in values
    ]
    latent, image = np.nonzero(np.array(fires))
    ends = np.searchsorted(latent, np.arange(len(values) + 1))
    embedding, n_images = mean_embeddings(ends, image, np.ones(len(image), np.float32), v)
    held = Embeddings(embedding, n_images, v.mean(axis=0))
    right, right_plainly = [], []
    for number, (_, value) in enumerate(values):
        texts = [*(phrase.replace("{}", value) for phrase in PHRASES), *NEUTRAL]
        with torch.inference_mode():
            t = normalize(backbone.encode_text(texts), dim=-1).numpy()
        words, neutral = t[: len(PHRASES)].mean(axis=0), t[len(PHRASES) :].mean(axis=0)
        right.append(held.scores(words, neutral).argmax() == number)
        right_plainly.append((embedding.astype(np.float32) @ t[0]).argmax() == number)
    assert np.mean(right) > 0.85 and np.mean(right_plainly) < 0.5


WORLD = SmallWorld.make([0, 1, 2, 1, 0, 2, 1, 0, 0, 2, 1, 1] * 4, ["train"] * 48, ["a", "b", "c"])
SETTINGS = {"statistics": "s", "n_embedded": 0, "n_per_band": 2, "n_cofiring": 4, "n_cofiring_tokens": 100}


def gallery_of(store: Store, chunks_per_shard: int = 2, **settings: object) -> Artifact:
    inputs = WORLD.inputs(store, chunks_per_shard=chunks_per_shard)
    counted = StatisticsConfig(sae="sae")
    statistics = run(store, STATISTICS, counted, inputs)
    config = GalleryStageConfig(
        gallery=GalleryConfig.model_validate({**SETTINGS, **settings}),
        statistics=counted,
        backbone=ShapesClipConfig(),
    )
    return run(store, STAGE, config, {**inputs, "statistics": statistics})


def frames(artifact: Artifact) -> list[pl.DataFrame]:
    names = ("latent_examples", "latent_histograms", "cofiring")
    return [artifact.scan(name).drop("artifact").collect() for name in names]


def test_neither_parts_nor_groups_of_latents_change_what_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = frames(gallery_of(Store(tmp_path / "one"), chunks_per_shard=100))
    many = frames(gallery_of(Store(tmp_path / "many"), chunks_per_shard=1))
    monkeypatch.setattr(merge, "_FIRINGS", 50)
    monkeypatch.setattr(cofiring_module, "_PAIRS", 60)
    grouped = frames(gallery_of(Store(tmp_path / "grouped")))
    for first, second, third in zip(one, many, grouped, strict=True):
        assert first.height > 20 and first.equals(second) and first.equals(third)


def test_another_seed_draws_other_examples_from_the_same_bands(tmp_path: Path) -> None:
    first, second = (
        frames(gallery_of(Store(tmp_path / str(seed)), seed=seed, n_cofiring_tokens=10**6)) for seed in (0, 1)
    )
    assert not first[0].equals(second[0])
    assert (
        first[0]
        .group_by("latent", "low")
        .len()
        .sort("latent", "low")
        .equals(second[0].group_by("latent", "low").len().sort("latent", "low"))
    )
    # All tokens are drawn, whatever the seed.
    assert first[1].equals(second[1]) and first[2].equals(second[2])


def test_latents_that_fire_on_the_same_images_do_not_draw_the_same_examples() -> None:
    settings = GallerySettings()
    draws = settings.image_draws(1000)[:, None] ^ settings.latent_draws(30)
    assert len(np.unique(draws.argmin(axis=0))) > 15


def test_the_least_sample_of_tokens_is_one_where_all_latents_fire() -> None:
    settings = GallerySettings()
    assert settings.share_of_tokens(50_000, 10) == 1
    assert settings.share_of_tokens(1_000_000, 10) == pytest.approx(0.1)
    assert settings.share_of_tokens(1_000_000, 1_000) == pytest.approx(0.001)
    assert settings.share_of_tokens(1_000_000, 50_000) == pytest.approx(1e-6)


def test_tokens_without_a_latent_count_for_the_lift() -> None:
    found = cofiring(np.array([2, 0, 2, 0]), np.array([0, 2, 0, 2]), 4, 3)
    assert found["latent"].tolist() == [0, 2] and found["other"].tolist() == [2, 0]
    assert found["jaccard"].tolist() == [1, 1] and found["lift"].tolist() == [2, 2]
    assert not len(cofiring(np.zeros(3, int), np.zeros(0, int), 4, 3)["latent"])
    assert list(groups_of(np.array([5, 1, 1, 9, 0]), 3)) == [(0, 1), (1, 3), (3, 4), (4, 5)]


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("bands", [[0.5, 0.5]], "the band [0.5, 0.5] is empty; give its lower end first"),
        ("bands", [[0, 0.5], [0, 0.5]], "name one band or more, each once"),
        ("bands", [], "name one band or more, each once"),
        ("bands", [[0.5, 1.5]], "less than or equal to 1"),
        ("n_images", 0, "greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: object, sentence: str) -> None:
    with pytest.raises(ValidationError) as error:
        GalleryConfig.model_validate({"statistics": "s", field: value})
    assert sentence in str(error.value)


def test_a_plan_refuses_a_gallery_of_what_is_no_statistics(experiment: Experiment, store: Store) -> None:
    text = EXPERIMENT.format(checkpoint="none").replace(
        "gallery, statistics: statistics, n_e", "gallery, statistics: gallery, n_e"
    )
    with pytest.raises(
        UserError, match="`statistics` names `gallery`, which is no evaluation of kind `statis"
    ):
        plan(store, parse(text, "gallery").nodes())


def test_a_plan_predicts_what_the_stage_then_writes(
    experiment: Experiment, store: Store, done: dict[str, Artifact]
) -> None:
    before = work_on(store, experiment).planned["gallery/gallery"]
    assert before.n_bytes is not None
    assert 0.5 < before.n_bytes / done["gallery/gallery"].n_bytes() < 2
    assert before.prediction.effort


def test_a_second_run_has_nothing_to_do(experiment: Experiment, done: dict[str, Artifact]) -> None:
    store = Store(done["gallery/gallery"].path.parents[1])
    assert {item.state for item in work_on(store, experiment).planned.values()} == {"cached"}


@pytest.mark.parametrize("k", [1, 3, 50])
def test_the_companions_that_are_left_unsorted_are_none_of_the_best(k: int) -> None:
    rng = np.random.default_rng(k)
    on = rng.random((400, 60)) < rng.random(60) ** 3 / 2
    found = cofiring(on.sum(axis=1), np.nonzero(on)[1], 60, k)
    both = on.T.astype(int) @ on
    n = both.diagonal()
    jaccard = both / np.maximum(n[:, None] + n - both, 1)
    np.fill_diagonal(jaccard, 0)
    best = np.argsort(-jaccard, axis=1, kind="stable")[:, :k]
    expected = [(s, other) for s in range(60) for other in best[s] if jaccard[s, other] > 0]
    assert list(zip(found["latent"], found["other"], strict=True)) == expected
    assert len(expected) > 30
