"""Runs a small experiment up to one stage, in a process of its own that a test can kill."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import open_clip

from pipeline.dag import build
from pipeline.experiment import parse
from pipeline.plan import companions, plan, run_together
from pipeline.stage import Runtime
from storage import activations
from storage.artifacts import Store

EXPERIMENT = """
name: small
datasets:
  digits: {{kind: digits}}
backbones:
  tiny: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}
saes:
  relu: {{kind: relu_l1, dataset: digits, backbone: tiny, n_latents: 512, batch_size: 1024, n_steps: 300, log_every: 3}}
evaluations:
  statistics: {{kind: statistics, sae: relu, tau: 0.01}}
  frontier: {{kind: frontier}}
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
    base: {{kind: topk, dataset: digits, backbone: tiny, n_latents: 512, batch_size: 1024, n_steps: 150, log_every: 3}}
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
    "masking": "masking/masking",
}
MODELS = Path(__file__).parent / "data" / "models"


def run_up_to(
    root: str, checkpoint: str, address: str, marker: str, experiment: str = EXPERIMENT, members: int = 8
) -> None:
    """Runs every node up to `address` and its companions, touching `marker` when that one starts."""
    open_clip.add_model_config(MODELS)
    # Many small shards, so that there is much to interrupt.
    activations._CHUNK_BYTES = 17 * 32 * 2 * 40
    store = Store(root)
    nodes = build(parse(experiment.format(checkpoint=checkpoint), "small"))
    for node in nodes:
        planned = plan(store, nodes)
        if node.address == address:
            Path(marker).touch()
        item = planned[node.address]
        group = [item, *companions(item, [planned[n.address] for n in nodes])][:members]
        run_together(store, group, planned, Runtime(workers=1, checkpoint_seconds=0.05))
        if node.address == address:
            return


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["small_run"])


def start(
    store: Store,
    checkpoint: Path,
    address: str,
    marker: Path,
    experiment: str = EXPERIMENT,
    members: int = 8,
) -> multiprocessing.process.BaseProcess:
    """Starts `run_up_to` in a process of its own; returns once the node `address` is being run."""
    marker.unlink(missing_ok=True)
    process = CONTEXT.Process(
        target=run_up_to, args=(str(store.root), str(checkpoint), address, str(marker), experiment, members)
    )
    process.start()
    while not marker.exists() and process.is_alive():
        time.sleep(0.002)
    return process
