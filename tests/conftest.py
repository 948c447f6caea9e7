"""What several test folders share: a store, a silent runtime, and a small open_clip checkpoint."""

from __future__ import annotations

import os

# Two processes of two OpenMP threads each on two cores spin at each other's barriers, ten times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"

import shutil
import tempfile
from pathlib import Path

# The figures of this machine, which plans remember, are no business of the user's in tests.
os.environ["XDG_CACHE_HOME"] = str(Path(tempfile.gettempdir()) / "patchsae-tests-cache")

# Python 3.11's fork server forgets `sys.path`: without this it preloads nothing, and each child imports everything.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])

import open_clip
import pytest
import torch

from patchsae.pipeline.core.stage import Runtime
from patchsae.storage.store import Store
from tests.support import small_run
from tests.support.checkpoints import save_weights

TINY_MODEL = "patchsae-tiny"
"""32-pixel images, 16 patches, 3 blocks of width 32; registered with open_clip for the tests."""


@pytest.fixture(autouse=True, scope="session")
def tiny_model() -> str:
    open_clip.add_model_config(small_run.MODELS)
    return TINY_MODEL


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    """Random weights of the tiny model, as a safetensors file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny model.safetensors"
    save_weights(open_clip.create_model(tiny_model), path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Store:
    """The store of a small experiment (`small_run.EXPERIMENT`), run once without interruption. Read only."""
    folder = tmp_path_factory.mktemp("small")
    store = Store(folder / "store")
    process = small_run.start(store, tiny_checkpoint, small_run.ADDRESSES["masking"], folder / "marker")
    process.join()
    assert process.exitcode == 0
    return store


@pytest.fixture(scope="session")
def adapted_store(
    small_store: Store, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> Store:
    """The small store, in which `small_run.ADAPTED` is done too. Read only."""
    folder = tmp_path_factory.mktemp("adapted")
    store = Store(shutil.copytree(small_store.root, folder / "store"))
    address = small_run.ADAPTED_ADDRESSES["adaptation"]
    process = small_run.start(store, tiny_checkpoint, address, folder / "marker", small_run.ADAPTED)
    process.join()
    assert process.exitcode == 0
    return store
