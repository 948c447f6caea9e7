"""`up_to`: a stage with what it needs, and nothing that happens elsewhere in the experiment."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import check_can_run, work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store

TEXT = """
name: two
datasets:
  shapes: {{kind: shapes, seed: 1, splits: {{train: 24, test: 12}}, label: colour}}
  missing: {{kind: image_folder, root: {missing}}}
backbones:
  clip: {{kind: shapes_clip}}
saes:
  one: {{kind: topk, k: 4, n_latents: 48, batch_size: 128, n_steps: 5, dataset: shapes, backbone: clip}}
evaluations:
  of-shapes: {{kind: statistics, sae: one}}
  of-missing: {{kind: statistics, sae: one, dataset: missing}}
"""
NEEDED = {"index/shapes", "weights/clip", "extract/shapes-clip", "train/one", "statistics/of-shapes"}


def test_a_stage_is_run_with_what_it_needs_though_others_are_blocked(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    experiment = parse(TEXT.format(missing=tmp_path / "missing"), "two")
    with pytest.raises(UserError, match="missing"):
        check_can_run(work_on(store, experiment))
    work = work_on(store, experiment, up_to=["statistics/of-shapes"])
    assert work.wanted == NEEDED
    check_can_run(work)
    assert run(work, Runtime()).keys() == NEEDED
    assert work_on(store, experiment, up_to=["statistics/of-shapes"]).to_do() == []


def test_it_is_added_to_only(tmp_path: Path) -> None:
    experiment = parse(TEXT.format(missing=tmp_path / "missing"), "two")
    work = work_on(Store(tmp_path / "store"), experiment, only=["statistics"], up_to=["extract/shapes-clip"])
    assert work.wanted == (NEEDED - {"train/one"}) | {"statistics/of-missing"}
    work = work_on(Store(tmp_path / "store"), experiment, up_to=["statistics"])
    assert work.wanted == NEEDED | {"index/missing", "extract/missing-clip", "statistics/of-missing"}


def test_an_unknown_stage_is_refused(tmp_path: Path) -> None:
    experiment = parse(TEXT.format(missing=tmp_path / "missing"), "two")
    with pytest.raises(UserError, match=r"--up-to statistic: .*did you mean `statistics`"):
        work_on(Store(tmp_path / "store"), experiment, up_to=["statistic"])
