"""Matching of two SAEs against closed forms, plain correlations and all permutations."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_array
from torch.nn.functional import normalize

from patchsae.pipeline.evaluations.matching.correlation import best_correlations, weighted_mean
from patchsae.pipeline.evaluations.matching.decoders import assign, largest_cosines
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.saes.sae import load_sae
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.nodes import run_all

EXPERIMENT = """
name: matching
datasets: {{digits: {{kind: digits, n_images: 160}}}}
backbones:
  clip: {{kind: open_clip, model: patchsae-tiny, checkpoint: {base!r}}}
  tuned: {{kind: wise_ft, backbone: clip, checkpoint: {tuned!r}, alpha: 1}}
saes:
  of-clip: {{kind: topk, k: 4, n_latents: 64, batch_size: 128, n_steps: 30, lr: 0.003, dataset: digits, backbone: clip}}
  of-tuned: {{kind: topk, k: 4, n_latents: 48, batch_size: 128, n_steps: 30, lr: 0.003, dataset: digits,
              backbone: tuned}}
evaluations:
  tokens: {{kind: matching, first: of-clip, second: of-tuned, split: train, limit: 40}}
  images: {{kind: matching, first: of-clip, second: of-tuned, split: train, limit: 40, over: images, n_exact: 0,
            n_candidates: 100}}
  same: {{kind: matching, first: of-clip, second: of-clip}}
"""


@pytest.fixture(scope="module")
def done(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("matching")
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(tiny_checkpoint).items()
        if name.startswith("visual.")
    }
    save_file(changed, folder / "tuned.safetensors")
    text = EXPERIMENT.format(base=str(tiny_checkpoint), tuned=str(folder / "tuned.safetensors"))
    return run_all(Store(folder / "store"), parse(text, "matching").nodes())


@torch.inference_mode()
def latents(done: dict[str, Artifact], over: str) -> list[np.ndarray]:
    """The dense activations of both SAEs on the first 40 images of the split: [N, S]."""
    first = int(done["index/digits"].scan("images").filter(split="train").collect()["image"][0])
    found = []
    for name in ("clip", "tuned"):
        x = torch.from_numpy(Activations(done[f"extract/digits-{name}"]).read(first, first + 40)).float()
        f = load_sae(done[f"train/of-{name}"]).encode(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        found.append((f.mean(1) if over == "images" else f.flatten(0, 1)).double().numpy())
    return found


@pytest.mark.parametrize("over", ["tokens", "images"])
def test_latents_correlate_as_pearson_says(done: dict[str, Artifact], over: str) -> None:
    f, g = latents(done, over)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.nan_to_num(np.corrcoef(f.T, g.T)[:64, 64:], nan=-2)
    table = done[f"matching/{over}"].scan("matching_latents").collect()
    rows = done[f"matching/{over}"].scan("matching").collect()
    for side, own, matrix in (("first", f, r), ("second", g, r.T)):
        mine = table.filter(side=side)
        alive = np.flatnonzero(own.sum(0) > 0)
        assert mine["latent"].to_list() == alive.tolist() and len(alive) > 0
        np.testing.assert_allclose(mine["correlation"].to_numpy(), matrix[alive].max(1), atol=1e-5)
        partner = mine["correlated"].to_numpy()
        np.testing.assert_allclose(matrix[alive, partner], matrix[alive].max(1), atol=1e-5)
        np.testing.assert_allclose(mine["mass"].to_numpy(), own.sum(0)[alive], rtol=1e-5)
        row = rows.row(by_predicate=pl.col("side") == side, named=True)
        assert row["wmppc"] == pytest.approx(
            np.average(matrix[alive].max(1), weights=own.sum(0)[alive]), abs=1e-5
        )
        assert row["mppc"] == pytest.approx(matrix[alive].max(1).mean(), abs=1e-5)
        assert (row["n_images"], row["over"], row["n_alive"]) == (40, over, len(alive))
    # The comparison would mean little if all matched.
    assert 0.1 < rows["wmppc"].min() < rows["wmppc"].max() < 0.999


def test_decoders_are_assigned_one_to_one(done: dict[str, Artifact]) -> None:
    table = done["matching/tokens"].scan("matching_latents").collect()
    W = [normalize(load_sae(done[f"train/of-{name}"]).W_dec, dim=1) for name in ("clip", "tuned")]
    first, second = (
        table.filter(side=side).filter(pl.col("assigned").is_not_null()) for side in ("first", "second")
    )
    pairs = set(first.select("latent", "assigned").rows())
    assert pairs == set(second.select("assigned", "latent").rows())
    rows = done["matching/tokens"].scan("matching").collect()
    assert len(pairs) == min(rows["n_alive"]) and rows["exact"].all()
    for row in first.iter_rows(named=True):
        cosine = (W[0][row["latent"]] @ W[1][row["assigned"]]).item()
        assert row["assigned_cosine"] == pytest.approx(cosine, abs=1e-6)
    alive = [table.filter(side=side)["latent"].to_numpy() for side in ("first", "second")]
    nearest = (W[0][alive[0].tolist()] @ W[1][alive[1].tolist()].T).amax(1)
    np.testing.assert_allclose(table.filter(side="first")["nearest_cosine"].to_numpy(), nearest, atol=1e-6)
    # With every latent a candidate, the sparse way finds as large a sum, and does not call it exact.
    sparse = done["matching/images"].scan("matching").collect()
    assert not sparse["exact"].any() and sparse["assigned_cosine"][0] == pytest.approx(
        rows["assigned_cosine"][0]
    )


def test_an_sae_matches_itself(done: dict[str, Artifact]) -> None:
    rows = done["matching/same"].scan("matching").collect()
    for name in ("assigned_cosine", "nearest_cosine", "mppc", "wmppc"):
        assert rows[name].to_list() == pytest.approx([1.0, 1.0], abs=1e-6), name
    table = done["matching/same"].scan("matching_latents").collect()
    assert table["latent"].equals(table["assigned"].rename("latent"))
    assert done["matching/same"].manifest.summary["first_wmppc"] == pytest.approx(1)


@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 5), (5, 3)])
def test_an_assignment_has_the_largest_sum(n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(n)
    a, b = torch.randn(n, 6, generator=generator), torch.randn(m, 6, generator=generator)
    cosine = (normalize(a, dim=1) @ normalize(b, dim=1).T).numpy()
    small, large = (cosine, m) if n <= m else (cosine.T, n)
    best = max(
        sum(small[i, j] for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(large), min(n, m))
    )
    for n_exact in (10, 0):
        found = assign(a, b, n_exact, n_candidates=10)
        assert found.is_exact == (n_exact == 10) and len(found.first) == min(n, m)
        assert found.cosine.sum() == pytest.approx(best, abs=1e-6)
        np.testing.assert_allclose(found.cosine, cosine[found.first, found.second], atol=1e-6)


def test_a_permuted_sae_is_found_by_few_candidates() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3000, 32, generator=generator)
    order = torch.randperm(3000, generator=generator)
    found = assign(a, 5 * a[order], n_exact=100, n_candidates=2)
    assert np.array_equal(order.numpy()[found.second], found.first) and len(found.first) == 3000
    np.testing.assert_allclose(found.cosine, 1, atol=1e-6)
    np.testing.assert_allclose(largest_cosines(a, a[order]), 1, atol=1e-6)
    assert not len(assign(a, a[:0], 100, 2).first)


def test_constant_and_dead_latents_correlate_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    f = np.array([[1, 0, 3, 0.5], [2, 0, 3, 0], [0, 0, 3, 0.25]], np.float32)
    g = f[:, ::-1].copy()
    monkeypatch.setattr("patchsae.pipeline.evaluations.matching.correlation._CELLS", 4)
    first, second = best_correlations(csr_array(f), csr_array(g))
    assert first.latent.tolist() == [3, -1, -1, 0] and second.latent.tolist() == [3, -1, -1, 0]
    np.testing.assert_allclose(first.correlation, [1, np.nan, np.nan, 1])
    assert weighted_mean(first.correlation, np.array([1.0, 5, 5, 3])) == pytest.approx(1)
    assert weighted_mean(np.array([np.nan]), np.ones(1)) is None


def test_towers_of_other_tokens_are_compared_by_images(
    tiny_checkpoint: Path, tmp_path: Path, done: dict[str, Artifact]
) -> None:
    from patchsae.pipeline.evaluations.kinds.matching import STAGE, MatchingConfig
    from tests.support.sae_inputs import activations, run, train

    store = Store(tmp_path / "store")
    x = np.random.default_rng(0).standard_normal((160, 9, 32)).astype(np.float16)
    inputs = {
        "images": done["index/digits"],
        "first sae": done["train/of-clip"],
        "first activations": done["extract/digits-clip"],
        "second sae": train(store, load_sae(done["train/of-tuned"])),
        "second activations": activations(store, x, 20, 2),
    }
    config = {"first": "a", "second": "b", "split": "train", "limit": 8}
    with pytest.raises(
        UserError, match=r"17 tokens in the backbone of `a` and 9 in that of `b`; write `over: images`"
    ):
        run(store, STAGE, MatchingConfig.model_validate(config), inputs)
    made = run(store, STAGE, MatchingConfig.model_validate({**config, "over": "images"}), inputs)
    assert made.scan("matching").collect()["wmppc"].is_not_null().all()
