"""What each stage made of a small experiment when its `version` was last raised.

A change here without a raised version means that stores would keep results of the old code under the new key.
Integers and the index are compared exactly, floats to one part in a thousand: BLAS kernels differ between CPUs.
After raising a version, `PATCHSAE_GOLDEN=write uv run pytest tests/golden` writes the new values.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_run import ADDRESSES

from pipeline.saes.base import load_sae
from storage import tables
from storage.activations import Activations, to_float32
from storage.artifacts import Artifact, Store

GOLDEN = Path(__file__).parent / "golden.json"


def values_of(artifact: Artifact) -> dict[str, Any]:
    """Numbers that move when the content does."""
    found: dict[str, Any] = {"version": artifact.manifest.version, "summary": artifact.manifest.summary}
    if artifact.stage == "index":
        found["identity"] = artifact.identity
    if artifact.stage == "extract":
        values = to_float32(Activations(artifact).read(100, 120), "float16")
        found["moments"] = [float(values.mean()), float(values.std()), float(np.abs(values).max())]
    if artifact.stage == "train":
        sae = load_sae(artifact)
        found["norms"] = [float(t.norm()) for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)]
    for output in artifact.manifest.outputs:
        if output.path.endswith(".parquet"):
            frame = pl.read_parquet(artifact.path / output.path)
            numbers = frame.select(
                pl.selectors.numeric().cast(pl.Float64).fill_nan(None).sum(), n_rows=pl.len()
            )
            found[Path(output.path).stem] = numbers.row(0, named=True)
    return found


@pytest.mark.parametrize("stage", ADDRESSES)
def test_the_same_version_makes_the_same_values(stage: str, small_store: Store) -> None:
    [artifact] = small_store.committed(stage)
    found = json.loads(json.dumps(values_of(artifact)))
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("PATCHSAE_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps({**golden, stage: found}, indent=1, sort_keys=True) + "\n")
        return
    expected = golden[stage]
    if found["version"] != expected["version"]:
        pytest.fail(f"{stage} is now version {found['version']}: write its golden values anew")
    message = f"{stage} makes other values than its version {expected['version']} did: raise Stage.version"
    assert _same(found, expected), message


def _same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(_same(found[k], expected[k]) for k in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(_same, found, expected))
    if isinstance(expected, float):
        return bool(np.isclose(found, expected, rtol=1e-3, atol=1e-6))
    return bool(found == expected)


def test_every_table_is_read_by_plain_polars(small_store: Store) -> None:
    for name in ("images", "training", "latents", "latent_images", "class_latents", "masking"):
        plain = pl.concat(
            [pl.read_parquet(path) for path in tables.names(small_store)[name]], how="diagonal_relaxed"
        )
        assert plain.height == tables.scan(name, small_store).collect().height > 0
        assert "artifact" in plain.columns
