"""Benchmarks that no other test calls still run, on the smallest model there is, and report what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = ["--model", "shapes_clip", "--latents", "256", "--train-images", "10"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adapt", ["--model", "shapes_clip", "--depth", "2", "--classes", "3", "--steps", "3"]),
        ("checks", ["--latents", "256", "--rows", "1000"]),
        ("explorer", ["--latents", "64", "--images", "2000", "--classes", "5", "--repeats", "2"]),
        ("index", ["--images", "2", "--listed", "10"]),
        ("masking", [*SMALL, "--images", "2"]),
        ("masking_grid", [*SMALL, "--images", "2", "--random", "1", "--repeats", "1"]),
        ("memory", [*SMALL, "--test-images", "2", "--classes", "10"]),
        ("world", ["--images", "20"]),
        ("width", [*SMALL[:4], "--width", "64", "--batch", "256", "--images", "8", "--repeats", "1"]),
        ("stream", ["--images", "64", "--width", "32", "--batch-size", "256", "--repeats", "1"]),
    ],
)
def test_a_benchmark_runs(name: str, options: list[str], tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *options, "--json", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(results.read_text())
    assert measured and any(measurement["value"] > 0 for measurement in measured.values())
    assert name == "world" or all(measurement["value"] > 0 for measurement in measured.values())
