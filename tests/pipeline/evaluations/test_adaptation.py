"""The evaluation `adaptation`: a row per adapter and half, and what seeds have in common."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import t

from patchsae.pipeline.evaluations.adaptation.seeds import SUMMARISED, over_adapters
from patchsae.pipeline.experiment.experiment import parse
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.nodes import run_all

EXPERIMENT = """
name: adapted
datasets: {{digits: {{kind: digits, n_images: 300}}}}
backbones:
  tiny: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}
adapters:
  probe: {{kind: linear_probe, backbone: tiny, dataset: digits, shots: 8, views: 0, epochs: 5}}
sweeps:
  tune:
    base: {{kind: fine_tune, backbone: tiny, dataset: digits, classes: base, shots: 8, steps: 5, lr: 0.01}}
    grid: {{seed: [1, 2]}}
saes:
  sae: {{kind: topk, k: 8, dataset: digits, backbone: tiny, n_latents: 128, batch_size: 512, n_steps: 30}}
evaluations:
  adaptation: {{kind: adaptation, sae: sae, tau: 0.05, ks: [1, all], taus: [], n_bootstrap: 50, masking_ks: [2],
                n_random: 1}}
"""


def test_every_adapter_has_the_rows_of_its_remapping(tiny_checkpoint: Path, store: Store) -> None:
    experiment = parse(EXPERIMENT.format(checkpoint=str(tiny_checkpoint)), "adapted")
    done = run_all(store, experiment.nodes())
    found = done["adaptation/adaptation"].scan("adaptation").collect()
    assert found["adapter"].to_list() == [a for a in ("probe", "tune-seed1", "tune-seed2") for _ in range(3)]
    assert found["classes"].to_list() == ["all", "base", "novel"] * 3
    assert found["trained_on"].to_list() == ["all"] * 3 + ["base"] * 6
    for address, artifact in done.items():
        if address.startswith("remapping/"):
            rows = artifact.scan("remapping").collect()
            adapter = next(a for a in ("probe", "tune-seed1", "tune-seed2") if f"-{a}-" in address)
            mine = found.filter(pl.col("adapter") == adapter)
            for column in ("accuracy_before", "accuracy_after", "high", "low_to_high_per_class", "pearson"):
                assert mine[column].to_list() == rows[column].to_list()
            assert mine["n_classes"].to_list() == rows["n_classes_total"].to_list() == [10] * 3
            assert mine["n_group"].to_list() == rows["n_classes"].to_list() == [10, 5, 5]
    probe = found.filter(pl.col("adapter") == "probe")
    # The probe leaves the image tower as it is: no concept changes, only what is read off them.
    assert probe["high_to_low"].to_list() == probe["low_to_high"].to_list() == [0, 0, 0]
    assert len([address for address in done if address.startswith("masking/")]) == 6
    seeds = done["adaptation/adaptation"].scan("adaptation_seeds").collect()
    assert seeds.height == 2 * 3 * len(SUMMARISED)
    tuned = seeds.filter(
        pl.col("kind") == "fine_tune", pl.col("classes") == "novel", pl.col("quantity") == "accuracy_after"
    )
    of_seeds = found.filter(pl.col("kind") == "fine_tune", pl.col("classes") == "novel")["accuracy_after"]
    assert tuned["n_seeds"].item() == 2
    assert tuned["mean"].item() == pytest.approx(of_seeds.mean())
    assert tuned["standard_deviation"].item() == pytest.approx(of_seeds.std())


def test_another_adapter_measures_that_one_alone(tiny_checkpoint: Path) -> None:
    text = EXPERIMENT.format(checkpoint=str(tiny_checkpoint))
    few = {node.address: node for node in parse(text, "few").nodes()}
    more = {
        node.address: node for node in parse(text.replace("seed: [1, 2]", "seed: [1, 2, 3]"), "more").nodes()
    }
    assert all(
        more[address] == node for address, node in few.items() if not address.startswith("adaptation/")
    )
    assert all("seed3" in address for address in more.keys() - few.keys())


def test_an_interval_covers_images_and_seeds() -> None:
    about = {"kind": "maple", "dataset": "pets", "trained_on": "base", "shots": 16, "classes": "base"}
    others = dict.fromkeys(SUMMARISED)
    rows = [
        {
            **others,
            **about,
            "settings": "x",
            "accuracy_after": value,
            "accuracy_after_ci_low": value - 0.02,
            "accuracy_after_ci_high": value + 0.04,
        }
        for value in (0.5, 0.6, 0.7)
    ]
    [found] = [row for row in over_adapters(rows) if row["quantity"] == "accuracy_after"]
    half = math.hypot(t.ppf(0.975, 2) * 0.1 / math.sqrt(3), 0.03)
    assert (found["mean"], found["n_seeds"]) == (pytest.approx(0.6), 3)
    assert found["standard_deviation"] == pytest.approx(np.std([0.5, 0.6, 0.7], ddof=1))
    assert (found["ci_low"], found["ci_high"]) == (pytest.approx(0.6 - half), pytest.approx(0.6 + half))
    [alone] = [row for row in over_adapters(rows[:1]) if row["quantity"] == "accuracy_after"]
    assert alone["standard_deviation"] is None and alone["ci_high"] == pytest.approx(0.53)
    [nothing] = [row for row in over_adapters(rows) if row["quantity"] == "gain"]
    assert nothing["n_seeds"] == 0 and nothing["mean"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("sae: sae, tau", "sae: sae, adapters: [tun], tau"),
            "`adapters` names `tun`, which is no adapter; there is `probe`",
        ),
        (
            ("sae: sae, tau", "sae: sae, adapters: ['x-*'], tau"),
            "`adapters` names `x-[*]`, which is no adapter",
        ),
    ],
)
def test_a_name_that_matches_nothing_is_one_sentence(
    change: tuple[str, str], message: str, tiny_checkpoint: Path
) -> None:
    text = EXPERIMENT.format(checkpoint=str(tiny_checkpoint)).replace(*change)
    with pytest.raises(UserError, match=f"^adaptation: {message}"):
        parse(text, "adapted").nodes()
