"""What each stage made of a small experiment when its `version` was last raised.

A change here without a raised version means that stores would keep results of the old code under the new key. Whole
numbers and texts are compared by a digest of each column in its order, floats element by element to one part in a
thousand: BLAS kernels differ between CPUs. After raising a version, `PATCHSAE_GOLDEN=write uv run pytest
tests/golden -n0` writes the new values.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from patchsae.pipeline.evaluations.gallery.embeddings import Embeddings
from patchsae.pipeline.results.tables import Catalog
from patchsae.pipeline.saes.sae import load_sae
from patchsae.storage import tables
from patchsae.storage.activations import Activations, to_float32
from patchsae.storage.artifacts import Artifact
from patchsae.storage.keys import digest_json
from patchsae.storage.store import Store
from tests.support.small_run import ADAPTED_ADDRESSES, ADDRESSES

FOLDER = Path(__file__).parent


def values_of(artifact: Artifact) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is compared exactly, and the floats."""
    manifest = artifact.manifest
    exact: dict[str, Any] = {"version": manifest.version}
    floats: dict[str, np.ndarray] = {}
    for name, value in manifest.summary.items():
        if isinstance(value, float):
            floats[f"summary.{name}"] = np.array(value)
        else:
            exact[f"summary.{name}"] = value
    if artifact.stage == "index":
        exact["identity"] = artifact.identity
    if artifact.stage == "extract":
        floats["activations"] = to_float32(Activations(artifact).read(100, 104), "float16")
    if artifact.stage == "train":
        sae = load_sae(artifact)
        for name, tensor in sae.tensors().items():
            floats[f"norms.{name}"] = tensor.double().norm().numpy()
    if artifact.stage == "gallery":
        floats |= vars(Embeddings.read(artifact))
    for table in {tables.table_of(output.path) for output in manifest.outputs} - {None}:
        for column in artifact.scan(str(table)).drop("artifact").collect():
            name = f"{table}.{column.name}"
            # Keys of other artifacts change with every version before this stage.
            if column.dtype.is_float():
                floats[name] = column.to_numpy()
            elif column.name not in ("key", "sae_key", "config"):
                exact[name] = digest_json(column.to_list())
    return exact, floats


@pytest.mark.parametrize("stage", [*ADDRESSES, *ADAPTED_ADDRESSES])
def test_the_same_version_makes_the_same_values(stage: str, request: pytest.FixtureRequest) -> None:
    store: Store = request.getfixturevalue("small_store" if stage in ADDRESSES else "adapted_store")
    [artifact] = store.committed(stage)
    exact, floats = values_of(artifact)
    path, arrays = FOLDER / f"{stage}.json", FOLDER / f"{stage}.npz"
    if os.environ.get("PATCHSAE_GOLDEN") == "write":
        path.write_text(json.dumps(exact, indent=1, sort_keys=True) + "\n")
        np.savez_compressed(arrays, **floats)  # type: ignore[arg-type]
        return
    expected = json.loads(path.read_text())
    if exact["version"] != expected["version"]:
        pytest.fail(f"{stage} is now version {exact['version']}: write its golden values anew")
    message = f"{stage} makes other values than its version {expected['version']} did: raise Stage.version"
    assert exact == expected, message
    with np.load(arrays) as known:
        assert set(known) == set(floats), message
        for name, values in floats.items():
            np.testing.assert_allclose(
                values, known[name], rtol=1e-3, atol=1e-5, err_msg=f"{name}: {message}"
            )


def test_every_table_is_read_by_plain_polars(small_store: Store) -> None:
    for name in ("images", "training", "latents", "latent_images", "class_latents", "masking"):
        files = small_store.root.glob(f"*/*/tables/{name}.parquet")
        plain = pl.concat([pl.read_parquet(path) for path in files], how="diagonal_relaxed")
        assert plain.height == Catalog(small_store).scan(name).collect().height > 0
        assert "artifact" in plain.columns
