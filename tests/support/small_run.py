"""Runs a small experiment up to one stage, in a process of its own that a test can kill."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import open_clip

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import groups
from patchsae.storage import activations
from patchsae.storage.store import Store
from tests.support.writes import die_before

EXPERIMENT = """
name: small
datasets:
  digits: {{kind: digits}}
backbones:
  tiny: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}
saes:
  relu: {{kind: relu_l1, dataset: digits, backbone: tiny, n_latents: 512, batch_size: 1024, n_steps: 300}}
evaluations:
  statistics: {{kind: statistics, sae: relu, tau: 0.01}}
  frontier: {{kind: frontier}}
  remapping: {{kind: remapping, before: statistics, after: statistics, taus: [0.02], ks: [5, all], n_bootstrap: 20}}
  matching: {{kind: matching, first: relu, second: relu, limit: 100}}
  gallery: {{kind: gallery, statistics: statistics, n_images: 500, n_per_band: 3, n_cofiring: 5, n_embedded: 80}}
  masking: {{kind: masking, statistics: statistics, ks: [1, 5, 50], n_random: 2}}
"""
SWEEP = """
name: small-sweep
datasets:
  digits: {{kind: digits}}
backbones:
  tiny: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}
sweeps:
  sweep:
    base: {{kind: topk, dataset: digits, backbone: tiny, n_latents: 512, batch_size: 1024, n_steps: 150}}
    grid: {{k: [4, 8]}}
    also: [{{kind: jumprelu, n_latents: 256}}]
evaluations: {{}}
"""
SWEEP_ADDRESS = "train/sweep-k4"
ADDRESSES = {
    "index": "index/digits",
    "extract": "extract/digits-tiny",
    "train": "train/relu",
    "statistics": "statistics/statistics",
    "reconstruction": "reconstruction/relu-test",
    "frontier": "frontier/frontier",
    "remapping": "remapping/remapping",
    "matching": "matching/matching",
    "gallery": "gallery/gallery",
    "masking": "masking/masking",
}
ADAPTED = """
name: small-adapted
datasets:
  digits: {{kind: digits}}
backbones:
  tiny: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}
adapters:
  probe: {{kind: linear_probe, backbone: tiny, dataset: digits, shots: 16, views: 2, batch_size: 32, epochs: 30}}
saes:
  relu: {{kind: relu_l1, dataset: digits, backbone: tiny, n_latents: 512, batch_size: 1024, n_steps: 300}}
evaluations:
  adaptation: {{kind: adaptation, sae: relu, tau: 0.01, taus: [0.02], ks: [5, all], n_bootstrap: 20}}
"""
"""What is done beside `EXPERIMENT`, with the same SAE, so that both fit into one store."""
ADAPTED_ADDRESSES = {
    "few_shot": "few_shot/digits-16-seed1",
    "features": "features/digits-16-seed1-tiny-views2",
    "adapt": "adapt/probe",
    "adaptation": "adaptation/adaptation",
}
MODELS = Path(__file__).parents[1] / "data" / "models"


def run_up_to(
    root: str,
    checkpoint: str,
    address: str,
    marker: str,
    experiment: str = EXPERIMENT,
    members: int = 8,
    at: int = 0,
) -> None:
    """Runs every node up to `address` and its companions.

    Touches `marker` when that one starts, and writes into it how many durable writes it took. Dies before number `at`
    of them, if that is not 0.
    """
    open_clip.add_model_config(MODELS)
    # Many small shards, so that there is much to interrupt.
    activations._CHUNK_BYTES = 17 * 32 * 2 * 40
    work = work_on(Store(root), parse(experiment.format(checkpoint=checkpoint), "small"))
    for group in groups(work, Runtime(workers=1, checkpoint_seconds=0.05, members=members)):
        if group.first.node.address != address:
            group.build()
            continue
        Path(marker).touch()
        n_writes = die_before(at)
        group.build()
        Path(marker).write_text(str(n_writes()))
        return


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.small_run", "sklearn.datasets"])


def start(
    store: Store,
    checkpoint: Path,
    address: str,
    marker: Path,
    experiment: str = EXPERIMENT,
    members: int = 8,
    at: int = 0,
) -> multiprocessing.process.BaseProcess:
    """Starts `run_up_to` in a process of its own; returns once the node `address` is being run."""
    marker.unlink(missing_ok=True)
    process = CONTEXT.Process(
        target=run_up_to,
        args=(str(store.root), str(checkpoint), address, str(marker), experiment, members, at),
    )
    process.start()
    while not marker.exists() and process.is_alive():
        time.sleep(0.002)
    return process
