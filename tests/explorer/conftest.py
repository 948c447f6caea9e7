"""A client of the explorer over a store, without a socket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from patchsae.explorer.answers import Answers
from patchsae.explorer.app import application
from patchsae.explorer.guard import Policy
from patchsae.explorer.library import Library
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.store import Store
from tests.support import photo_store

SHAPES = """
name: shapes
datasets: {shapes: {kind: shapes, seed: 1, splits: {train: 60, test: 20}}}
backbones: {clip: {kind: shapes_clip}}
adapters:
  vpt: {kind: vpt, backbone: clip, dataset: shapes, shots: 1, steps: 2, n_ctx: 3, depth: 6, views: 0}
  lora: {kind: lora, backbone: clip, dataset: shapes, shots: 1, steps: 2, views: 0}
  probe: {kind: linear_probe, backbone: clip, dataset: shapes, shots: 1, steps: 2, views: 0}
saes:
  relu: {kind: relu_l1, dataset: shapes, backbone: clip, n_latents: 256, batch_size: 256, n_steps: 60}
  topk: {kind: topk, k: 8, dataset: shapes, backbone: clip, n_latents: 256, batch_size: 256, n_steps: 60}
  jump: {kind: jumprelu, dataset: shapes, backbone: clip, n_latents: 256, batch_size: 256, n_steps: 60}
evaluations:
  relu: {kind: statistics, sae: relu}
  topk: {kind: statistics, sae: topk}
  jump: {kind: statistics, sae: jump}
  adapted: {kind: statistics, sae: relu, backbone: vpt}
  by-lora: {kind: statistics, sae: relu, backbone: lora}
  by-probe: {kind: statistics, sae: relu, backbone: probe, split: test}
  gallery: {kind: gallery, statistics: relu}
  masking: {kind: masking, statistics: relu, ks: [1], n_random: 1}
  masking-adapted: {kind: masking, statistics: adapted, backbone: vpt, ks: [1], n_random: 1}
"""
Open = Callable[[Store], TestClient]
ADDRESS = "http://127.0.0.1:8765"


@pytest.fixture
def explore() -> Open:
    """Opens a client over a store, as a browser on this machine is one."""

    def opened(store: Store) -> TestClient:
        answers = Answers(Library(store))
        app = application(answers.resource, answers.file, Policy.of("127.0.0.1", 8765))
        return TestClient(app, base_url=ADDRESS)

    return opened


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `photo_store.make`: photographs in `photos`, and their store. Read only."""
    folder = tmp_path_factory.mktemp("photographs")
    photo_store.make(folder)
    return folder


@pytest.fixture(scope="session")
def shapes_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store about the shapes world, with masking, and with a second backbone that has prompts. Read only."""
    store = Store(tmp_path_factory.mktemp("shapes") / "store")
    run(work_on(store, parse(SHAPES, "shapes")), Runtime())
    return store
