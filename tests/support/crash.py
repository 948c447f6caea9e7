"""A small experiment in a process that kills itself at its n-th durable write.

Killing before each of them in turn covers every instant (`tests.support.writes`).
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Literal

import open_clip
import torch
from safetensors.torch import save_file

from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.damage import drop_damaged, verify
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.experiment.unneeded import delete_unneeded
from patchsae.pipeline.saes.sae import CONFIG, WEIGHTS, Sae
from patchsae.storage import activations
from patchsae.storage.store import Store
from tests.support.checkpoints import save_weights
from tests.support.small_run import MODELS
from tests.support.writes import die_before

EXPERIMENT = """
name: tiny
datasets:
  digits: {{kind: digits, n_images: 60}}
backbones:
  tiny: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}
saes:
  relu: {{kind: relu_l1, dataset: digits, backbone: tiny, n_latents: 64, batch_size: 128, n_steps: 4}}
  another: {{kind: imported, dataset: digits, backbone: tiny, path: {sae!r}}}
sweeps:
  sweep:
    base: {{kind: topk, dataset: digits, backbone: tiny, n_latents: 64, batch_size: 128, n_steps: 4}}
    grid: {{k: [2, 4]}}
evaluations:
  statistics: {{kind: statistics, sae: relu, tau: 0.01}}
  masking: {{kind: masking, statistics: statistics, ks: [1], n_random: 1}}
  of-another: {{kind: statistics, sae: another, tau: 0.01}}
  frontier: {{kind: frontier, saes: [relu]}}
"""


def experiment_text(checkpoint: Path) -> str:
    """The experiment with the files that `write_files` makes: the checkpoint, and an SAE beside it."""
    return EXPERIMENT.format(checkpoint=str(checkpoint), sae=str(checkpoint.with_name("an sae")))


def write_files(checkpoint: Path) -> None:
    """Random weights of the tiny model, and an SAE for its activations, in files."""
    torch.manual_seed(0)
    save_weights(open_clip.create_model("patchsae-tiny"), checkpoint)
    W = torch.randn(32, 48) / 6
    sae = Sae(W, torch.zeros(48), W.T.contiguous(), torch.zeros(32))
    folder = checkpoint.with_name("an sae")
    folder.mkdir()
    save_file(sae.tensors(), folder / WEIGHTS)
    (folder / CONFIG).write_text("{}")


def collect_everything(store: Store) -> None:
    """Forgets every record, and deletes what no record needs."""
    for name in store.records.all():
        store.records.forget(name)
    delete_unneeded(store)


Action = Literal["run", "rerun", "gc", "discard"]


def run_until(root: str, checkpoint: str, at: int, counter: str, action: Action = "run") -> None:
    """Runs the experiment, or what else changes a store, and dies before its durable write number `at`.

    If it ends, it writes down how many durable writes there were. `rerun` builds every artifact again, `gc` deletes
    them all, and `discard` drops what is damaged.
    """
    torch.set_num_threads(1)
    open_clip.add_model_config(MODELS)
    # Several shards, so that there are parts.
    activations._CHUNK_BYTES = 17 * 32 * 2 * 8
    n_writes = die_before(at)
    store, experiment = Store(root), parse(experiment_text(Path(checkpoint)), "tiny")
    match action:
        case "run":
            run(work_on(store, experiment), Runtime(checkpoint_seconds=0.0))
        case "rerun":
            stages = [node.stage.name for node in experiment.nodes()]
            run(work_on(store, experiment, rerun=stages), Runtime(checkpoint_seconds=0.0))
        case "gc":
            collect_everything(store)
        case "discard":
            drop_damaged(store, verify(store, Reporter()))
    Path(counter).write_text(str(n_writes()))


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.crash", "tests.support.small_run", "sklearn.datasets"])


def crash(store: Store, checkpoint: Path, at: int, counter: Path, action: Action = "run") -> int:
    """Runs `run_until` in a process of its own; returns its exit code."""
    process = CONTEXT.Process(
        target=run_until, args=(str(store.root), str(checkpoint), at, str(counter), action)
    )
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode
