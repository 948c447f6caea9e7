"""Remapping against closed forms and the plain way, on a backbone and a fine-tuned one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import pearsonr, spearmanr

from patchsae.pipeline.backbones.towers.vit import ClipVit
from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.classification.classifier import load_classifier
from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.evaluations.remapping.counting import counts_above, span_of
from patchsae.pipeline.evaluations.remapping.groups import bounds, correlations, gain, groups
from patchsae.pipeline.experiment.experiment import Experiment, parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.results.tables import Catalog
from patchsae.pipeline.saes.encode import EncoderChoice, LatentEncoder
from patchsae.pipeline.saes.sae import Sae, load_sae
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.nodes import run_all

EXPERIMENT = """
name: remapping
datasets: {{digits: {{kind: digits, n_images: 240}}}}
backbones:
  clip: {{kind: open_clip, model: patchsae-tiny, checkpoint: {base!r}}}
  tuned: {{kind: wise_ft, backbone: clip, checkpoint: {tuned!r}, alpha: 1}}
saes:
  sae: {{kind: topk, k: 8, n_latents: 160, batch_size: 256, n_steps: 40, lr: 0.003, dataset: digits, backbone: clip}}
  other: {{kind: topk, k: 8, n_latents: 96, batch_size: 256, n_steps: 5, dataset: digits, backbone: clip}}
evaluations:
  clip: {{kind: statistics, sae: sae}}
  tuned: {{kind: statistics, sae: sae, backbone: tuned}}
  again: {{kind: statistics, sae: sae, k_images: 3}}
  clip-base: {{kind: statistics, sae: sae, classes: base}}
  tuned-base: {{kind: statistics, sae: sae, backbone: tuned, classes: base}}
  other: {{kind: statistics, sae: other}}
  loose: {{kind: statistics, sae: sae, tau: 0.1}}
  remapping: {{kind: remapping, before: clip, after: tuned, upper: 10, lower: 20, taus: [0.1],
               bounds: [[10, 20], [5, 10]], ks: [1, 5, 50, all], n_bootstrap: 100, n_correlated: 60}}
  same: {{kind: remapping, before: clip, after: again}}
  base: {{kind: remapping, before: clip-base, after: tuned-base, upper: 10, lower: 20, n_bootstrap: 0, taus: []}}
"""
N_LATENTS = 160


@pytest.fixture(scope="module")
def text(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    state = load_file(tiny_checkpoint)
    tuned = tmp_path_factory.mktemp("tuned") / "tuned.safetensors"
    generator = torch.Generator().manual_seed(1)
    changed = {
        n: t + 0.008 * torch.randn(t.shape, generator=generator) for n, t in state.items() if "visual" in n
    }
    save_file(changed, tuned)
    return EXPERIMENT.format(base=str(tiny_checkpoint), tuned=str(tuned))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("remapping") / "store")


@pytest.fixture(scope="module")
def experiment(text: str) -> Experiment:
    return parse(text, "remapping")


def nodes_for(experiment: Experiment, *names: str) -> list[Node]:
    """The nodes of some evaluations and what they need."""
    by_address = {node.address: node for node in experiment.nodes()}
    wanted = {f"remapping/{name}" for name in names}
    for node in reversed(list(by_address.values())):
        if node.address in wanted:
            wanted |= set(node.inputs.values())
    return [node for address, node in by_address.items() if address in wanted]


@pytest.fixture(scope="module")
def done(store: Store, experiment: Experiment) -> dict[str, Artifact]:
    nodes = nodes_for(experiment, "remapping", "same", "base")
    artifacts = run_all(store, [node for node in nodes if node.stage.name != "remapping"])
    with pytest.MonkeyPatch.context() as patch:
        heads: list[int] = []
        patch.setattr(ClipVit, "head", lambda self, images: heads.append(len(images)))
        artifacts |= run_all(store, nodes)
        assert not heads
    return artifacts


class Plain:
    """Every latent of every image of a split, for both backbones, and their tails."""

    def __init__(self, done: dict[str, Artifact], experiment: Experiment, split: str) -> None:
        self.sae = load_sae(done["train/sae"])
        images = done["index/digits"].scan("images").filter(split=split).collect()
        self.labels = images["label"].to_numpy()
        first, last = int(images["image"][0]), int(images["image"][-1]) + 1
        configs = {node.address: node.config for node in experiment.nodes()}
        self.x, self.f, self.predict = [], [], []
        for name in ("clip", "tuned"):
            x = torch.from_numpy(Activations(done[f"extract/digits-{name}"]).read(first, last)).float()
            self.x.append(x)
            self.f.append(self.sae.encode(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
            inputs = {"weights": done[f"weights/{name}"], "base": done["weights/clip"]}
            backbone = load_backbone(configs[f"weights/{name}"], inputs, "cpu")  # type: ignore[arg-type]
            address = next(a for a in done if a.startswith(f"classifier/digits-{name}-"))
            embeddings = load_classifier(done[address])[0]
            self.predict.append((backbone, embeddings))

    def counts(self, tau: float) -> np.ndarray:
        """Tokens above tau per class and side: [2, C, S]."""
        return np.stack(
            [np.stack([(f[self.labels == c] > tau).sum((0, 1)).numpy() for c in range(10)]) for f in self.f]
        )

    @torch.inference_mode()
    def predicted(self, side: int, x: torch.Tensor, among: np.ndarray) -> np.ndarray:
        backbone, embeddings = self.predict[side]
        return among[(backbone.tail(x) @ embeddings[among].T).argmax(1).numpy()]


@pytest.fixture(scope="module")
def train(done: dict[str, Artifact], experiment: Experiment) -> Plain:
    return Plain(done, experiment, "train")


@pytest.fixture(scope="module")
def test(done: dict[str, Artifact], experiment: Experiment) -> Plain:
    return Plain(done, experiment, "test")


TASKS = {"all": np.arange(10), "base": np.arange(5), "novel": np.arange(5, 10)}


def table(artifact: Artifact, name: str = "remapping") -> pl.DataFrame:
    return artifact.scan(name).collect()


def plain_groups(x: np.ndarray, y: np.ndarray, upper: int, lower: int) -> list[set[int]]:
    """By sorting and loops."""
    pooled = sorted([*x.tolist(), *y.tolist()], reverse=True)
    U, L = max(pooled[upper - 1], 1), pooled[lower - 1]
    every = range(len(x))
    return [
        {s for s in every if x[s] >= U and y[s] >= U},
        {s for s in every if x[s] >= U and y[s] < L},
        {s for s in every if x[s] < L and y[s] >= U},
    ]


def test_groups_are_those_of_the_formula(done: dict[str, Artifact], train: Plain) -> None:
    x, y = train.counts(0.2)
    members = table(done["remapping/remapping"], "remapping_latents")
    found = table(done["remapping/remapping"])
    assert found["classes"].to_list() == ["all", "base", "novel"]
    of_class = [plain_groups(x[c], y[c], 10, 20) for c in range(10)]
    for g, name in enumerate(("high", "high_to_low", "low_to_high")):
        for c in range(10):
            mine = members.filter(pl.col("class") == c, pl.col("group") == name)
            assert set(mine["latent"]) == of_class[c][g], (name, c)
            assert mine["x"].to_list() == x[c, mine["latent"].to_numpy()].tolist()
        for row in found.iter_rows(named=True):
            total = sum(len(of_class[c][g]) for c in TASKS[row["classes"]])
            assert row[name] == pytest.approx(total / 10)
            assert row[f"{name}_per_class"] == pytest.approx(total / len(TASKS[row["classes"]]))
            # Ties make the counts of resamples differ a little from those of the images.
            assert row[f"{name}_ci_low"] - 1 <= row[name] <= row[f"{name}_ci_high"] + 1
    # The comparison would mean little if nothing moved.
    assert found["low_to_high"][0] > 0 and found["high"][0] > 1


def test_latents_are_kept_added_and_removed(done: dict[str, Artifact], train: Plain) -> None:
    active = [
        np.stack([(f[train.labels == c] > 0).any(1).float().mean(0).numpy() >= 0.5 for c in range(10)])
        for f in train.f
    ]
    sets = {"kept": active[0] & active[1], "added": ~active[0] & active[1], "removed": active[0] & ~active[1]}
    members = table(done["remapping/remapping"], "remapping_latents")
    for name, here in sets.items():
        for row in table(done["remapping/remapping"]).iter_rows(named=True):
            assert row[f"{name}_latents"] == pytest.approx(here[TASKS[row["classes"]]].sum(1).mean())
        if name != "kept":
            listed = members.filter(activity=name)
            assert set(listed.select("class", "latent").rows()) == {
                *zip(*map(np.ndarray.tolist, np.nonzero(here)), strict=True)
            }
    assert sets["added"].any() and sets["removed"].any()


def test_accuracies_gains_and_predictions(done: dict[str, Artifact], train: Plain, test: Plain) -> None:
    predictions = table(done["remapping/remapping"], "remapping_predictions")
    counts = train.counts(0.2)[0]
    mask = torch.zeros(len(test.labels), 1, N_LATENTS)
    for row in table(done["remapping/remapping"]).iter_rows(named=True):
        among = TASKS[row["classes"]]
        here = np.isin(test.labels, among)
        plain = [test.predicted(side, test.x[side], among) for side in range(2)]
        before, after = ((p == test.labels)[here].mean() for p in plain)
        assert row["n"] == here.sum()
        assert (row["accuracy_before"], row["accuracy_after"]) == pytest.approx((before, after))
        assert row["gain"] == pytest.approx((after - before) / (1 - before))
        assert row["gain_ci_low"] <= row["gain"] <= row["gain_ci_high"]
        for side, model in enumerate(("before", "after")):
            for k in (None, 1, 5, 50, N_LATENTS):
                if k is None:
                    predicted = plain[side]
                else:
                    mask.zero_()
                    for i, label in enumerate(test.labels):
                        top = np.lexsort((np.arange(N_LATENTS), -counts[label]))[:k]
                        mask[i, 0, top.copy()] = 1
                    x = (test.f[side] * mask) @ test.sae.W_dec + test.sae.b_dec
                    predicted = test.predicted(side, x, among)
                pairs, n = np.unique(np.stack([test.labels, predicted])[:, here], axis=1, return_counts=True)
                found = predictions.filter(pl.col("k").eq_missing(k), classes=row["classes"], model=model)
                assert found.select("class", "predicted", "n").rows() == [
                    (a, b, m) for (a, b), m in zip(pairs.T.tolist(), n.tolist(), strict=True)
                ]


def test_correlations_and_sensitivity(done: dict[str, Artifact], train: Plain) -> None:
    sensitivity = table(done["remapping/remapping"], "remapping_sensitivity")
    assert sensitivity.height == 3 * 2 * 2
    for row in table(done["remapping/remapping"]).iter_rows(named=True):
        x, y = train.counts(0.2)[:, TASKS[row["classes"]]].sum(1)
        top = np.argsort(-np.maximum(x, y), kind="stable")[:60]
        assert row["pearson"] == pytest.approx(pearsonr(x[top], y[top]).statistic)
        assert row["spearman"] == pytest.approx(spearmanr(x[top], y[top]).statistic)
        for tau in (0.2, 0.1):
            counts = train.counts(tau)
            for pair in ((10, 20), (5, 10)):
                groups = [plain_groups(counts[0, c], counts[1, c], *pair) for c in TASKS[row["classes"]]]
                found = sensitivity.filter(classes=row["classes"], tau=tau, upper=pair[0], lower=pair[1])
                for g, name in enumerate(("high", "high_to_low", "low_to_high")):
                    assert found[name].item() == pytest.approx(sum(len(one[g]) for one in groups) / 10)


def test_the_change_is_divided_between_the_sae_and_what_it_leaves(
    done: dict[str, Artifact], train: Plain
) -> None:
    x_hat = [f @ train.sae.W_dec + train.sae.b_dec for f in train.f]
    D, D_hat = (train.x[1] - train.x[0]).double(), (x_hat[1] - x_hat[0]).double()
    alive = (train.f[0] > 0).any(0).any(0) | (train.f[1] > 0).any(0).any(0)
    q = torch.linalg.svd(train.sae.W_dec[alive].double(), full_matrices=False)[2]
    for row in table(done["remapping/remapping"]).iter_rows(named=True):
        here = torch.from_numpy(np.isin(train.labels, TASKS[row["classes"]]))
        total = D[here].square().sum()
        expected = {
            "change": (total / train.x[0][here].double().square().sum()).sqrt(),
            "change_left_over": (D - D_hat)[here].square().sum() / total,
            "change_explained": 1 - (D - D_hat)[here].square().sum() / total,
            "change_reconstructed": D_hat[here].square().sum() / total,
            "change_in_span": (D[here] @ q.T).square().sum() / total,
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value.item(), rel=1e-4), name
    assert row["change_left_over"] > 0 and row["change_in_span"] > 0.5


def test_a_new_direction_is_in_what_the_sae_leaves_over() -> None:
    W = torch.eye(6)[[0, 1, 1, 2]] * torch.tensor([[3.0], [1.0], [0.5], [0.01]])
    span = span_of(W)
    assert span.shape == (6, 3)
    new = torch.eye(6)[4]
    assert (new @ span).norm() == pytest.approx(0, abs=1e-6)
    assert (torch.eye(6)[1] @ span).norm() == pytest.approx(1)
    assert span_of(torch.zeros(0, 6)).shape == (6, 0)


def test_identical_models_remap_nothing(done: dict[str, Artifact]) -> None:
    for row in table(done["remapping/same"]).iter_rows(named=True):
        assert row["high_to_low"] == row["low_to_high"] == row["added_latents"] == row["removed_latents"] == 0
        assert row["gain"] == 0 and row["accuracy_before"] == row["accuracy_after"]
        assert row["pearson"] == pytest.approx(1) and row["spearman"] == pytest.approx(1)
        assert row["change"] == 0 and row["change_explained"] is None
        assert row["high_to_low_ci_high"] == 0
    predictions = table(done["remapping/same"], "remapping_predictions").drop("artifact")
    sides = [predictions.filter(model=one).drop("model") for one in ("before", "after")]
    assert sides[0].equals(sides[1])


def test_identical_models_without_ties_have_25_high_latents() -> None:
    x = np.random.default_rng(0).permutation(5000)[None].repeat(3, axis=0)
    assert groups(x, x, 50, 100).sum(-1).tolist() == [[25] * 3, [0] * 3, [0] * 3]
    # 24 of them are above U, so that a strict comparison would give another number (spec 6.3).
    U, L = bounds(x, x, 50, 100)
    assert (x > U).sum(-1).tolist() == [24] * 3 and (x >= L).sum(-1).tolist() == [50] * 3


def test_ties_and_few_counts() -> None:
    # All that tie with U are high, and nothing is below an L of 0.
    x = np.array([9, 9, 9, 9, 0, 0])
    assert groups(x, x, 2, 4).sum(-1).tolist() == [4, 0, 0]
    y = np.array([0, 9, 9, 9, 9, 0])
    assert [g.nonzero()[0].tolist() for g in groups(x, y, 2, 8)] == [[1, 2, 3], [0], [4]]
    assert groups(x, y, 2, 12).sum(-1).tolist() == [3, 0, 0]
    # Latents without a counted token are in no group, though U is 0.
    assert groups(np.zeros(6), np.zeros(6), 2, 4).sum() == 0
    # Fewer latents than places.
    assert groups(np.array([3, 2]), np.array([1, 3]), 50, 100).sum(-1).tolist() == [2, 0, 0]


def test_gain_and_undefined_correlations() -> None:
    assert gain(0.4261, 0.7307) == pytest.approx(0.5308, abs=1e-4)
    assert gain(1.0, 1.0) is None
    assert correlations(np.array([3, 3, 0]), np.array([1, 2, 0]), 10) == (None, None, 2)


@pytest.mark.parametrize("max_density", [1.0, 0.0])
def test_counts_above_several_thresholds(max_density: float) -> None:
    generator = torch.Generator().manual_seed(2)
    sae = Sae(
        torch.randn(8, 30, generator=generator), torch.full((30,), -2.0), torch.randn(30, 8), torch.zeros(8)
    )
    x = torch.randn(3 * 5, 8, generator=generator)
    with torch.inference_mode():
        latents = LatentEncoder(sae, EncoderChoice("float32", max_density)).block(x)
        f = sae.encode(x).view(3, 5, 30)
    for tau in (0.0, 0.2, 1.0):
        assert torch.equal(counts_above(latents, 3, tau).long(), (f > tau).sum(1))


def test_statistics_of_a_half_have_one_row(done: dict[str, Artifact]) -> None:
    half, whole = table(done["remapping/base"]), table(done["remapping/remapping"]).filter(classes="base")
    assert half["classes"].to_list() == ["base"] and half["n_classes_total"].to_list() == [10]
    for name in ("high", "low_to_high_per_class", "accuracy_after", "change_explained", "kept_latents"):
        assert half[name].to_list() == pytest.approx(whole[name].to_list())
    assert half["high_ci_low"].is_null().all() and half["gain_ci_low"].is_null().all()
    assert set(table(done["remapping/base"], "remapping_sensitivity")["tau"]) == {0.2}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("after: other", "of the SAE `sae` and `after` of `other`, whose latents are others"),
        ("after: tuned-base", r"their `classes` is `None` and `base`; give both the same"),
        ("after: loose", "their `tau` is `0.2` and `0.1`"),
        ("after: base", "`base`, which is no evaluation of kind `statistics`"),
        ("after: tuned, split: vali", "split `vali`: no image has it"),
        ("after: tuned, lower: 5", "the 5-th largest count is not below the 10-th largest"),
        ("after: tuned, limit: 1", "no image of the"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(
    text: str, store: Store, done: object, change: str, sentence: str
) -> None:
    before = "after: tuned, upper: 10, lower: 20" if "lower" in change else "after: tuned"
    changed = text.replace(
        f"before: clip, {before}",
        f"before: clip, {change}, upper: 10" if "lower" in change else f"before: clip, {change}",
    )
    assert changed != text
    with pytest.raises(UserError, match=sentence):
        planned = work_on(store, parse(changed, "remapping")).planned["remapping/remapping"]
        assert planned.state == "blocked"
        raise UserError(planned.why)


def test_rows_are_named_by_the_backbone_after(store: Store, experiment: Experiment, done: object) -> None:
    work_on(store, experiment)
    assert Catalog(store).scan("remapping").collect().height == 7
