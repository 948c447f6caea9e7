"""Variants of masking against the plain way: several statistics, predictions, the error, means, base and novel."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch

from patchsae.pipeline.backbones.towers.vit import ClipVit
from patchsae.pipeline.evaluations.bootstrap import accuracies, interval, resamples
from patchsae.pipeline.evaluations.masking.classify import Order, Reading, classify
from patchsae.pipeline.evaluations.masking.distinct import Distinct, fired_in, keys_of, signatures
from patchsae.pipeline.evaluations.masking.settings import MaskingSettings
from patchsae.pipeline.evaluations.masking.worker import off_of_top
from patchsae.pipeline.evaluations.statistics.rankings import class_ranking
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.saes.encode import EncoderChoice, LatentEncoder
from patchsae.pipeline.saes.sae import Sae, load_sae
from patchsae.pipeline.saes.sparse.latents import DenseLatents, SparseLatents
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.nodes import run_all

EXPERIMENT = """
name: variants
datasets:
  shapes: {kind: shapes, seed: 2, splits: {train: 160, test: 48}, label: texture}
backbones:
  clip: {kind: shapes_clip}
saes:
  relu: {kind: relu_l1, dataset: shapes, backbone: clip, n_latents: 128, l1_coefficient: 2.0e-3, lr: 4.0e-3,
         lr_warmup_steps: 10, batch_size: 1024, n_steps: 60}
evaluations:
  few: {kind: statistics, sae: relu, limit: 40}
  every: {kind: statistics, sae: relu}
  base: {kind: statistics, sae: relu, classes: base}
  novel: {kind: statistics, sae: relu, classes: novel}
  both: {kind: masking, statistics: [few, every], ks: [1, 4, 16, all], n_random: 2, attributes: [], n_bootstrap: 300,
         selections: [class, class_selective, prediction, prediction_selective, dataset, random]}
  alone: {kind: masking, statistics: every, ks: [1, 4, 16, all], n_random: 2, attributes: []}
  kept-mean: {kind: masking, statistics: every, ks: [4, all], attributes: [], error: kept, ablation: mean,
              selections: [class]}
  of-base: {kind: masking, statistics: base, ks: [4], classes: base, attributes: [], selections: [class]}
  of-novel: {kind: masking, statistics: every, ks: [4], classes: novel, attributes: [],
             selections: [class, prediction]}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("variants") / "store")


@pytest.fixture(scope="module")
def done(store: Store) -> dict[str, Artifact]:
    with pytest.MonkeyPatch.context() as patch:
        artifacts: dict[str, Artifact] = {}
        nodes = parse(EXPERIMENT, "variants").nodes()
        first = [node for node in nodes if node.stage.name != "masking"]
        artifacts |= run_all(store, first)
        # From cached activations and the tail alone.
        calls: list[int] = []
        patch.setattr(ClipVit, "head", lambda self, images: calls.append(len(images)))
        artifacts |= run_all(store, nodes)
        assert sum(calls) == 0
        return artifacts


def table(artifact: Artifact) -> pl.DataFrame:
    return artifact.scan("masking").collect()


def test_several_statistics_are_those_of_one_each(done: dict[str, Artifact]) -> None:
    both, alone = table(done["masking/both"]), table(done["masking/alone"])
    key = done["statistics/every"].key
    assert set(both["statistics_key"].drop_nulls()) == {key, done["statistics/few"].key}
    assert "statistics_key" not in alone.columns and "bootstrap_cost_low" not in alone.columns
    shared = ["selection", "mode", "k", "class", "n", "n_correct", "seed", "ci_low", "ci_high"]
    chosen = pl.col("selection").is_in(["class", "class_selective", "dataset", "none"])
    mine = both.filter(chosen & ((pl.col("statistics_key") == key) | pl.col("statistics_key").is_null()))
    assert mine.select(shared).equals(alone.filter(chosen).select(shared))
    random = both.filter(selection="random")
    assert random["statistics_key"].is_null().all() and random["seed"].n_unique() == 2


class World:
    """What the plain way of masking needs: every latent of every test image, and the tail."""

    def __init__(self, done: dict[str, Artifact]) -> None:
        from patchsae.pipeline.backbones.weights import load_backbone
        from patchsae.pipeline.classification.classifier import load_classifier

        config = parse(EXPERIMENT, "variants").backbones["clip"]
        self.backbone = load_backbone(config, {"weights": done["weights/clip"]}, "cpu")
        self.sae = load_sae(done["train/relu"])
        images = done["index/shapes"].scan("images").filter(split="test").collect()
        self.labels = images["label"].to_numpy()
        first, last = int(images["image"][0]), int(images["image"][-1])
        values = Activations(done["extract/shapes-clip"]).read(first, last + 1)
        self.x = torch.from_numpy(values).float()
        with torch.inference_mode():
            self.f = self.sae.encode(self.x.flatten(0, 1)).unflatten(0, self.x.shape[:2])
        self.x_hat = self.f @ self.sae.W_dec + self.sae.b_dec
        classifier = next(a for address, a in done.items() if address.startswith("classifier/shapes-"))
        self.embeddings = load_classifier(classifier)[0]

    @torch.inference_mode()
    def predicted(self, x: torch.Tensor, among: np.ndarray | None = None) -> np.ndarray:
        features = self.backbone.tail(x)
        ids = np.arange(len(self.embeddings)) if among is None else among
        return ids[(features @ self.embeddings[ids].T).argmax(1).numpy()]

    def ranking(self, statistics: Artifact) -> np.ndarray:
        return class_ranking(statistics, 128, len(self.embeddings), 128)


@pytest.fixture(scope="module")
def world(done: dict[str, Artifact]) -> World:
    return World(done)


def test_predictions_select_without_labels(done: dict[str, Artifact], world: World) -> None:
    predicted = world.predicted(world.x)
    assert (predicted != world.labels).any()
    found = table(done["masking/both"]).filter(
        pl.col("class").is_null(), selection="prediction", statistics_key=done["statistics/every"].key
    )
    ranking = world.ranking(done["statistics/every"])
    for k in (1, 4, 16):
        mask = torch.zeros(len(predicted), 1, 128)
        for i, label in enumerate(predicted):
            mask[i, 0, ranking[label, :k]] = 1
        for mode, m in (("on", mask), ("off", 1 - mask)):
            right = world.predicted((world.f * m) @ world.sae.W_dec + world.sae.b_dec) == world.labels
            assert found.filter(mode=mode, k=k)["n_correct"].item() == right.sum(), (mode, k)


def test_error_kept_and_means_in_place(done: dict[str, Artifact], world: World) -> None:
    found = table(done["masking/kept-mean"]).filter(pl.col("class").is_null())
    # The mean over all tokens of the statistics' split, also over those on which a latent is 0.
    images = done["index/shapes"].scan("images").filter(split="train").collect()["image"]
    x = Activations(done["extract/shapes-clip"]).read(int(images[0]), int(images[-1]) + 1)
    with torch.inference_mode():
        mean = world.sae.encode(torch.from_numpy(x).float().flatten(0, 1)).mean(0)
    error, ranking = world.x - world.x_hat, world.ranking(done["statistics/every"])
    mask = torch.zeros(len(world.labels), 1, 128)
    for i, label in enumerate(world.labels):
        mask[i, 0, ranking[label, :4]] = 1
    for mode, k, m in (
        ("on", 4, mask),
        ("off", 4, 1 - mask),
        ("off", 128, 0 * mask),
        ("on", 128, 0 * mask + 1),
    ):
        f = world.f * m + mean * (1 - m)
        right = world.predicted(f @ world.sae.W_dec + world.sae.b_dec + error) == world.labels
        assert found.filter(mode=mode, k=k)["n_correct"].item() == right.sum(), (mode, k)
    # With the error and all latents on, nothing is replaced.
    assert found.filter(mode="reconstruction")["n_correct"].equals(found.filter(mode="original")["n_correct"])


def test_base_and_novel_are_classified_among_themselves(done: dict[str, Artifact], world: World) -> None:
    n_classes = len(world.embeddings)
    for name, ids, statistics in (
        ("of-base", np.arange(-(-n_classes // 2)), "base"),
        ("of-novel", np.arange(-(-n_classes // 2), n_classes), "every"),
    ):
        here = np.isin(world.labels, ids)
        ranking = world.ranking(done[f"statistics/{statistics}"])
        found = table(done[f"masking/{name}"]).filter(pl.col("class").is_null(), mode="off", k=4)
        plain = world.predicted(world.x, ids)
        for selection in found["selection"]:
            f = world.f.clone()
            for i in range(len(f)):
                label = world.labels[i] if selection == "class" else plain[i]
                f[i, :, ranking[label, :4].copy()] = 0
            right = world.predicted(f @ world.sae.W_dec + world.sae.b_dec, ids) == world.labels
            assert found.filter(selection=selection)["n_correct"].item() == right[here].sum()
        assert found["n"].unique().to_list() == [here.sum()]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("statistics: every, ks: [4], classes: novel", "statistics: base, ks: [4], classes: novel"),
         r"images of `classes: novel` are masked by `class` and `prediction`, and the statistics count the classes "
         r"`base` alone; name statistics of the same classes, or of all"),
        (("statistics: [few, every]", "statistics: [few, alone]"), "`alone`, which is no evaluation of kind"),
    ],
)  # fmt: skip
def test_bad_statistics_are_sentences(store: Store, change: tuple[str, str], sentence: str) -> None:
    text = EXPERIMENT.replace(*change)
    assert text != EXPERIMENT
    with pytest.raises(UserError, match=sentence):
        planned = work_on(store, parse(text, "variants")).planned["masking/of-novel"]
        assert planned.state == "blocked"
        raise UserError(planned.why)


def test_statistics_of_two_saes_are_refused() -> None:
    text = EXPERIMENT.replace(
        "few: {kind: statistics, sae: relu,", "few: {kind: statistics, sae: other,"
    ).replace("saes:\n", "saes:\n  other: {kind: topk, k: 2, dataset: shapes, backbone: clip}\n")
    with pytest.raises(UserError, match=r"evaluations of several SAEs \(other, relu\)"):
        parse(text, "variants").nodes()


def test_bootstrap_columns_hold_their_numbers(done: dict[str, Artifact]) -> None:
    found = table(done["masking/both"])
    of_class, whole = found.filter(pl.col("class").is_not_null()), found.filter(pl.col("class").is_null())
    for name, value in (("accuracy", "accuracy"), ("class_mean", "class_mean_accuracy")):
        low, high = whole[f"bootstrap_{name}_low"], whole[f"bootstrap_{name}_high"]
        assert (low <= whole[value] + 1e-9).all() and (whole[value] <= high + 1e-9).all()
        assert (high - low).max() > 0.05 and of_class[f"bootstrap_{name}_low"].is_null().all()
    original = whole.filter(mode="original")
    assert original["bootstrap_cost_low"].item() == original["bootstrap_cost_high"].item() == 0
    cost = original["accuracy"].item() - whole["accuracy"]
    assert (whole["bootstrap_cost_low"] <= cost + 1e-9).all()
    assert (cost <= whole["bootstrap_cost_high"] + 1e-9).all()


def test_a_bootstrap_is_exact_to_repeat_and_near_its_closed_form() -> None:
    generator = np.random.default_rng(1)
    n, p = 400, 0.7
    right = generator.random((2, n)) < np.array([[p], [0.2]])
    labels = generator.integers(0, 4, n)
    micro, macro = accuracies(right, labels, 2000)
    assert np.array_equal(micro, accuracies(right, labels, 2000)[0])
    share = right.mean(1)
    np.testing.assert_allclose(micro.std(0), np.sqrt(share * (1 - share) / n), rtol=0.06)
    low, high = interval(micro)
    np.testing.assert_allclose((high - low) / 2, 1.96 * np.sqrt(share * (1 - share) / n), rtol=0.1)
    # The mean over classes, resample by resample, as a loop.
    drawn = np.concatenate(list(resamples(n, 2000)))
    assert (drawn.sum(1) == n).all()
    for i in (0, 7, 1999):
        of_classes = [
            np.average(right[:, labels == c], axis=1, weights=drawn[i, labels == c]) for c in range(4)
        ]
        np.testing.assert_allclose(macro[i], np.mean(of_classes, axis=0))


@pytest.mark.parametrize(("max_density", "kind"), [(1.0, SparseLatents), (0.0, DenseLatents)])
@torch.inference_mode()
def test_equal_masks_are_found_and_computed_once(max_density: float, kind: type) -> None:
    generator = torch.Generator().manual_seed(0)
    B, T, d, S, ks = 6, 5, 8, 40, np.array([1, 3, 10, 30])
    sae = Sae(
        torch.randn(d, S, generator=generator),
        torch.full((S,), -3.5),
        torch.randn(S, d, generator=generator),
        torch.zeros(d),
    )
    x = torch.randn(B, T, d, generator=generator)
    latents = LatentEncoder(sae, EncoderChoice("float32", max_density)).block(x.flatten(0, 1))
    assert isinstance(latents, kind)
    rankings = [torch.randperm(S, generator=generator)[None] for _ in range(3)]
    rankings += [rankings[0].expand(B, -1), torch.stack([rankings[i % 2][0] for i in range(B)])]
    fired, keys = fired_in(latents, B), keys_of(S)
    assert torch.equal(fired, (sae.encode(x.flatten(0, 1)).view(B, T, S) > 0).any(1))
    distinct = Distinct.of([signatures(fired, ranking, ks, keys, B) for ranking in rankings])

    def mask(m: int, k: int, b: int) -> frozenset[int]:
        ranking = rankings[m].expand(B, -1)[b, : ks[k]].tolist()
        return frozenset(s for s in ranking if fired[b, s])

    seen: dict[tuple[int, frozenset[int]], int] = {}
    for m in range(len(rankings)):
        for k in range(len(ks)):
            for b in range(B):
                latents_on, number = mask(m, k, b), int(distinct.number[m, k, b])
                if not latents_on:
                    assert number == 0 and not distinct.first[m, k, b]
                    continue
                assert distinct.first[m, k, b] == ((b, latents_on) not in seen)
                assert seen.setdefault((b, latents_on), number) == number
    assert distinct.n == len(seen) + 1 < len(rankings) * len(ks) * B / 2

    # Classified once each, beside the original, the reconstruction and the bias of every image.
    n_classified = 0

    class Counting:
        def features(self, activations: torch.Tensor) -> torch.Tensor:
            nonlocal n_classified
            n_classified += len(activations)
            return activations.sum(1)

    reading = Reading(torch.eye(d), torch.eye(d, dtype=torch.bool)[:B])
    outcomes = classify(
        x, latents, torch.arange(B), [reading], [Order(ranking) for ranking in rankings[:3]], ks, sae,
        Counting(), ("on",), range(T), keys,  # type: ignore[arg-type]
    )  # fmt: skip
    first = Distinct.of([signatures(fired, ranking, ks, keys, B) for ranking in rankings[:3]])
    assert n_classified == 3 * B + first.n - 1
    for m in range(3):
        for k in range(len(ks)):
            on = torch.zeros(B, 1, S)
            for b in range(B):
                on[b, 0, list(mask(m, k, b))] = 1
            f = sae.encode(x.flatten(0, 1)).view(B, T, S) * on
            right = (f @ sae.W_dec).sum(1).argmax(1) == torch.arange(B)
            assert outcomes.masked[m, 0, k, 0].tolist() == right.tolist()


def test_random_rankings_are_the_same_for_all_statistics() -> None:
    settings = MaskingSettings(selections=("class", "random"), n_random=2)
    assert [(one.order, one.statistics) for one in settings.rankings(2)] == [
        ("class 0", 0),
        ("class 1", 1),
        ("random 0", None),
        ("random 1", None),
    ]


def test_means_of_the_top_latents_add_up() -> None:
    W, means = torch.randn(6, 3), torch.rand(6)
    orders = torch.tensor([[5, 0, 2, 1], [1, 2, 3, 4]])
    found = off_of_top(orders, np.array([1, 3]), means, W)
    for row, order in enumerate(orders.tolist()):
        for step, k in enumerate((1, 3)):
            expected = sum(means[s] * W[s] for s in order[:k])
            torch.testing.assert_close(found[row, step], expected)
