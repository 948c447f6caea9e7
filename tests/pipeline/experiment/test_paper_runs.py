"""A preset of the paper runs, on tiny images and a tiny CLIP, up to what `compare-paper` reads."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import load
from patchsae.pipeline.experiment.request import check_can_run, work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.results.paper import ours
from patchsae.pipeline.results.paper.compare import compare
from patchsae.storage.store import Store
from tests.support.coop_data import tiny


def test_a_dataset_of_table_1_is_run_alone_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    for name in ("imagenet", "eurosat"):
        tiny(monkeypatch, tmp_path, name)
    clip = f"{{kind: open_clip, model: patchsae-tiny, checkpoint: {tiny_checkpoint}}}"
    overrides = [
        f"index.root={tmp_path}",
        f"backbones.clip={clip}",
        *("adapt.shots=2", "adapt.depth=1", "adapt.epochs=1"),
        *("train.batch_size=4", "train.n_steps=5", "train.expansion=4"),
        *("adaptation.upper=2", "adaptation.lower=4", "adaptation.bounds=[]", "adaptation.n_bootstrap=10"),
        *("adaptation.taus=[]", "adaptation/eurosat.adapters=[maple-eurosat-seed1, maple-eurosat-seed2]"),
    ]
    experiment = load("paper-table1", overrides)
    store = Store(tmp_path / "store")
    work = work_on(store, experiment, up_to=["adaptation/eurosat"])
    # The other datasets are not there.
    check_can_run(work)
    run(work, Runtime())
    assert compare(store).remarks != []
    monkeypatch.setattr(ours, "_MODEL", "patchsae-tiny")
    found = compare(store, seeds=True)
    assert set(found.missing) == {"table-2", "masking"}
    frame = found.frame.filter(table="table-1", dataset="eurosat", method="maple", quantity="high")
    assert frame.select("classes", "seed").rows() == [
        (half, seed) for half in ("base", "novel") for seed in (None, 1, 2)
    ]
    assert frame["ours"].null_count() == 0
    assert frame.filter(pl.col("seed").is_null())["n_seeds"].to_list() == [2, 2]
    # CLIP and MaPLe on both halves and three groups of each, in two tables; a gain, harmonic means, a second figure.
    assert compare(store).n_compared == 18
