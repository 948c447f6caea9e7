"""The tables of the quality benchmark from measured points, without training."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality import worlds
from benchmarks.quality.__main__ import N_LATENTS, N_WIDE, choices, read_points, reported
from benchmarks.quality.bench import OURS, PEER, Measured, Point
from benchmarks.quality.table import at_l0, table


def _measured(l0: float, fvu: float, dead: float = 0.0) -> Measured:
    return Measured(l0, fvu, dead, dead / 2, math.nan, math.nan)


def _points(kind: str, library: str, start: str, factor: float, seeds: int = 3) -> dict[Point, Measured]:
    """SAEs whose FVU is `factor` times (1 + seed / 10) / L0, and of 64 per channel with seed percent dead."""
    found = {}
    for seed in range(seeds):
        for k in (16, 32, 64):
            point = Point("shapes", library, kind, k, start, 1e-2, N_LATENTS, seed)
            found[point] = _measured(k, factor * (1 + seed / 10) / k)
        wide = Point("shapes", library, kind, 32, start, 4e-3, N_WIDE, seed)
        found[wide] = _measured(32, 0.1, seed / 100)
    return found


def test_fvu_is_interpolated_in_logarithms_between_the_nearest_two() -> None:
    saes = [_measured(64, 0.01, 0.4), _measured(16, 0.04, 0.2), _measured(4, 1.0)]
    found = at_l0(saes, 32)
    assert found is not None
    assert found.fvu == pytest.approx(0.02)
    assert found.dead == pytest.approx(0.3)
    assert found.dead_train == pytest.approx(0.15)
    assert at_l0(saes, 90) is None and at_l0(saes, 2) is None and at_l0(saes[:1], 64) is None


def test_the_table_has_means_and_spreads_over_seeds_ratios_and_ranks() -> None:
    found = {
        **_points("topk", OURS, "low_fvu", 1.0),
        **_points("batch_topk", OURS, "low_fvu", 0.5),
        **_points("topk", PEER, "0.1", 1.1),
    }
    values = {name: row["value"] for name, row in table(found, N_LATENTS).items()}
    name = "shapes: topk patchsae low_fvu, L0 32: FVU"
    assert values[name] == pytest.approx(1.1 / 32)
    assert values[f"{name}, spread of 3 seeds"] == pytest.approx(0.1 / 32)
    assert values["shapes: topk low_fvu, L0 32: SAELens' FVU / ours"] == pytest.approx(1.1)
    assert "shapes: batch_topk low_fvu, L0 32: SAELens' FVU / ours" not in values
    assert values["shapes: topk patchsae low_fvu, 64 per channel: dead"] == pytest.approx(0.01)
    assert values["shapes: topk patchsae low_fvu, 64 per channel: dead on training images"] == pytest.approx(
        0.005
    )
    assert values["shapes: low_fvu: rank of batch_topk"] == 1
    assert values["shapes: low_fvu: rank of topk"] == 2


def test_one_seed_has_no_spread() -> None:
    values = table(_points("topk", OURS, "low_fvu", 1.0, seeds=1), N_LATENTS)
    assert "shapes: topk patchsae low_fvu, L0 16: FVU" in values
    assert not any("spread" in name for name in values)


def test_libraries_get_as_many_tries_on_images_that_are_not_reported() -> None:
    tried = list(choices("shapes", "topk", 600))
    assert Counter(point.library for point in tried) == {OURS: 4, PEER: 4}
    assert {point.split for point in tried} == {"tune"}
    assert {point.split for point in reported("shapes", "topk", 600, 3, is_wide=False)} == {"test"}


def test_noted_points_are_read_but_for_a_line_that_a_kill_cut_off(tmp_path: Path) -> None:
    point, measured = Point("shapes", OURS, "topk", 16, "low_fvu", 1e-2, N_LATENTS), _measured(16, 0.1)
    line = json.dumps({"point": asdict(point), "measured": asdict(measured)})
    (tmp_path / "points.jsonl").write_text(f"{line}\n{line[:40]}")
    assert list(read_points(tmp_path / "points.jsonl")) == [point]
    assert read_points(tmp_path / "none.jsonl") == {}


def test_no_pixel_of_a_photograph_is_in_two_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The picture's colours are its coordinates, so that a crop says where it is from.
    rows, columns = np.mgrid[:200, :256]
    picture = np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8)
    monkeypatch.setattr(worlds, "load_sample_images", lambda: type("Sample", (), {"images": [picture]}))
    monkeypatch.setattr(worlds, "_PHOTOGRAPHS", [])
    monkeypatch.setattr(worlds, "N_TRAIN", 20)
    monkeypatch.setattr(worlds, "N_HELD_OUT", 20)
    worlds.write_crops(tmp_path)
    for split, rows_in, columns_in in (
        ("train", (0, 200), (0, 192)),
        ("tune", (0, 100), (192, 256)),
        ("test", (100, 200), (192, 256)),
    ):
        crops = [np.asarray(Image.open(path)) for path in (tmp_path / split).rglob("*.png")]
        assert len(crops) == 20
        for channel, (low, high) in enumerate((rows_in, columns_in)):
            values = np.stack(crops)[..., channel]
            assert low <= values.min() and values.max() < high, split
