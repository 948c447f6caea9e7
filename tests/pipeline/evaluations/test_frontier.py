"""The frontier's arithmetic and what its names mean."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from patchsae.flows.cli.app import app
from patchsae.pipeline.evaluations.kinds.frontier import pareto
from patchsae.pipeline.evaluations.reconstruction.ablation import kept
from patchsae.pipeline.evaluations.reconstruction.tables import firing_histogram
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.results.pick import best
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store

EXPERIMENT = """
name: e
datasets: {a: {kind: digits}, b: {kind: digits}}
backbones: {clip: {kind: shapes_clip}}
saes:
  wide-1: {kind: topk, dataset: a, backbone: clip}
  wide-2: {kind: topk, dataset: a, backbone: clip, k: 64}
  other: {kind: relu_l1, dataset: a, backbone: clip}
evaluations:
  frontier: {kind: frontier, SETTINGS}
"""


def addresses(settings: str) -> list[str]:
    nodes = parse(EXPERIMENT.replace("SETTINGS", settings), "e").nodes()
    return [node.address for node in nodes if node.stage.name in ("reconstruction", "frontier")]


def test_names_and_patterns() -> None:
    every = [f"reconstruction/{name}-test" for name in ("wide-1", "wide-2", "other")]
    assert addresses("split: test") == [*every, "frontier/frontier"]
    assert addresses("saes: ['wide-*']") == [*every[:2], "frontier/frontier"]
    assert addresses("saes: [other], dataset: b, split: train") == [
        "reconstruction/other-b-train",
        "frontier/frontier",
    ]
    with pytest.raises(UserError, match="names `wyde-1`, which is no SAE; did you mean `wide-1`"):
        addresses("saes: [wyde-1]")


def test_pareto_against_every_pair() -> None:
    rng = np.random.default_rng(0)
    l0, fvu = rng.integers(0, 6, 40).astype(float), rng.integers(0, 6, 40) / 10
    plain = [
        not any(l0[j] <= l0[i] and fvu[j] <= fvu[i] and (l0[j] < l0[i] or fvu[j] < fvu[i]) for j in range(40))
        for i in range(40)
    ]
    assert pareto(l0, fvu).tolist() == plain
    assert 0 < sum(plain) < 40


def test_kept() -> None:
    assert kept(0.8, 0.9, 0.1) == pytest.approx(7 / 8)
    assert kept(0.9, 0.5, 0.5) is None
    assert kept(0.375, 0.3125, 0.375) is None, "the ablation is better: nothing to keep, not all of it"


def test_firing_histogram_counts_every_latent_once() -> None:
    n_fired = np.array([0, 0, 1, 10, 100, 10**6, 999_999, 31_623])
    columns = firing_histogram(n_fired, 10**6)
    rows = {low: n for low, n in zip(columns["log10_low"], columns["n_latents"], strict=True) if n}
    assert rows == {None: 2, -6: 1, -5: 1, -4: 1, -1.5: 1, -0.25: 2}
    # Rarer than the first bin begins: counted in it.
    assert firing_histogram(np.array([1]), 10**8)["n_latents"][1] == 1


ROWS = pl.DataFrame(
    {
        "sae": ["a", "b", "c"],
        "l0": [8.0, 16.0, 32.0],
        "fvu": [0.3, 0.1, 0.05],
        "dead_fraction": [0.0, 0.2, 0.0],
        "set_kept_mean": [0.9, None, 0.9],
    }
)


def test_the_best_under_bounds() -> None:
    assert best(ROWS, "fvu", None, None)["sae"][0] == "c"
    assert best(ROWS, "fvu", 16, None)["sae"][0] == "b"
    assert best(ROWS, "fvu", 16, 0.1)["sae"][0] == "a"
    # Equal: the one with fewer latents per token.
    assert best(ROWS, "zero_shot_kept", None, None)["sae"][0] == "a"
    with pytest.raises(UserError, match="the lowest L0 there is is 8"):
        best(ROWS, "fvu", 4, None)


def test_pick_reads_the_store(small_store: Store) -> None:
    def pick(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["pick", "--store", str(small_store.root), *arguments])
        return result.exit_code, result.output

    [sae] = small_store.committed("train")
    code, shown = pick()
    assert code == 0 and "1 of 1 SAEs are on the frontier" in shown
    assert f"Best by fvu: train/relu, {sae.path}" in shown
    [row] = json.loads(pick("--json", "re*")[1])
    assert row["picked"] and row["sae_key"] == sae.key and row["on_frontier"] and row["path"] == str(sae.path)
    code, shown = pick("topk")
    assert code == 2 and "has no SAE named topk (it has relu)" in shown
    code, shown = pick("--store", str(small_store.root / "nothing"))
    assert code == 2 and "no frontier in this store" in shown
