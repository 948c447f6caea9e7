"""SAE training: steps against dense autograd and other libraries', the stream, a sweep, memory; all in one run.

Peers come with `uv run --with-requirements benchmarks/peers.txt python -m benchmarks.train`; without them their rows
are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.peers import Peer
from benchmarks.report import Measurement, Measurements, parser, report
from patchsae.pipeline.activations.stream import Stream
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.training import train
from patchsae.pipeline.training.adam import Adam
from patchsae.pipeline.training.member import Member
from patchsae.pipeline.training.objective import Objective, TrainedSaeConfig
from patchsae.pipeline.training.objectives.relu_l1 import ReluL1, ReluL1Config
from patchsae.pipeline.training.objectives.topk import TopKConfig
from patchsae.pipeline.training.process_group import ALONE
from patchsae.storage.activations import Activations, ActivationTemplate, ActivationWriter
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.tokens import TokenLayout

_LR = 1e-4
_N_DIRECTIONS = 2000


class World:
    """Tokens that are sums of some 30 of many directions, with a little noise: what SAEs are for."""

    def __init__(self, d: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.directions = torch.nn.functional.normalize(self._normal(_N_DIRECTIONS, d), dim=1)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def tokens(self, n: int) -> Tensor:
        """[n, d]"""
        which = torch.randint(0, _N_DIRECTIONS, (n, 30), generator=self.generator)
        amount = 3 * torch.rand(n, 30, generator=self.generator)
        codes = torch.zeros(n, _N_DIRECTIONS).scatter_(1, which, amount)
        return codes @ self.directions + 0.02 * self._normal(n, self.directions.shape[1]) + 0.5


def config_of(kind: type[TrainedSaeConfig], **settings: object) -> TrainedSaeConfig:
    return kind(**{"dataset": "-", "backbone": "-", "dead_feature_window": 10_000, **settings})  # type: ignore[arg-type]


def ours(name: str, objective: Objective, lr: float = _LR) -> Peer:
    """Our step as the engine takes it."""
    optimiser = Adam(objective.parameters)
    taken = 0

    def step(x: Tensor) -> float:
        nonlocal taken
        taken += 1
        loss = objective.gradients(x, torch.ones(len(x), dtype=torch.int64)).loss
        optimiser.step(lr, taken)
        return loss

    return Peer(name, step)


def tokens_per_second(steppers: Sequence[Peer], batches: Sequence[Tensor], rounds: int) -> dict[str, float]:
    """Of each, from the median of its steps; they take turns, so that a busy moment hits all."""
    taken: dict[str, list[float]] = {peer.name: [] for peer in steppers}
    for turn in range(rounds + 1):
        for peer in steppers:
            started = time.perf_counter()
            peer.step(batches[turn % len(batches)])
            # The first turn warms up.
            taken[peer.name] += [time.perf_counter() - started] if turn else []
    return {name: len(batches[0]) / statistics.median(times) for name, times in taken.items()}


def start_at_l0(x: Tensor, n_latents: int, l0: float) -> Sae:
    """Random unit directions with the biases at which so many latents fire per token, rare and frequent ones."""
    generator = torch.Generator().manual_seed(1)
    W_dec = torch.nn.functional.normalize(torch.randn(n_latents, x.shape[1], generator=generator), dim=1)
    b_dec = x.mean(dim=0)
    h = (x[:1024] - b_dec) @ W_dec.T
    # Log-normal frequencies that add up to l0, each reached by its latent's own quantile.
    frequency = torch.randn(n_latents, generator=generator).mul_(1.2).exp_()
    frequency = (frequency * (l0 / frequency.sum())).clamp_(max=0.3)
    rank = (frequency * len(h)).round_().long().clamp_(min=1)
    b_enc = -h.sort(dim=0, descending=True).values.gather(0, rank[None])[0]
    return Sae(W_dec.T.contiguous(), b_enc, W_dec, b_dec)


def has_peers() -> bool:
    return all(
        importlib.util.find_spec(name)
        for name in ("sae_lens", "sparsify", "dictionary_learning", "overcomplete")
    )


def relu(d: int, n_latents: int, batch: int, rounds: int) -> Measurements:
    """ReLU-L1 at L0 of about 100, everything from the same weights."""
    world = World(d)
    batches = [world.tokens(batch) for _ in range(4)]
    start = start_at_l0(batches[0], n_latents, 100)
    l1 = 1e-6
    warm = ReluL1(config_of(ReluL1Config, l1_coefficient=l1), start)  # type: ignore[arg-type]
    common = ours("", warm)
    for i in range(10):
        common.step(batches[i % 4])
    start = warm.sae()
    l0 = warm.gradients(batches[0], torch.ones(batch, dtype=torch.int64)).l0
    steppers = [
        ours(precision, ReluL1(config_of(ReluL1Config, l1_coefficient=l1, precision=precision), start))  # type: ignore[arg-type]
        for precision in ("bfloat16", "float32")
    ]
    steppers.append(peers.dense_relu_l1(start, l1))
    if has_peers():
        steppers.append(peers.sae_lens_standard(start, l1))
    speed = tokens_per_second(steppers, batches, rounds)
    label = f"ReLU-L1, L0 {l0:.0f}"
    found = {
        f"{label}: {name}": Measurement(value=v, target=None, unit="tokens/s") for name, v in speed.items()
    }
    for name, target in (("dense fp32 autograd", 4.0), ("SAELens standard", 3.0)):
        if name in speed:
            for precision in ("bfloat16", "float32"):
                found[f"{label}: {precision} / {name}"] = Measurement(
                    value=speed[precision] / speed[name], target=target, unit="ratio"
                )
    return found


def topk(d: int, n_latents: int, batch: int, rounds: int, k: int = 32) -> Measurements:
    """TopK against every peer's."""
    world = World(d)
    batches = [world.tokens(batch) for _ in range(4)]
    steppers = [
        ours(
            precision,
            config_of(TopKConfig, n_latents=n_latents, k=k, precision=precision).objective(batches[0], 1),
        )
        for precision in ("bfloat16", "float32")
    ]
    if has_peers():
        torch.manual_seed(0)
        steppers += [make(d, n_latents, k) for make in peers.TOPK]
    speed = tokens_per_second(steppers, batches, rounds)
    label = f"TopK k={k}, d={d}, S={n_latents:,}, batch {batch:,}"
    found = {
        f"{label}: {name}": Measurement(value=v, target=None, unit="tokens/s") for name, v in speed.items()
    }
    if has_peers():
        best = max(v for name, v in speed.items() if name not in ("bfloat16", "float32"))
        for precision in ("bfloat16", "float32"):
            found[f"{label}: {precision} / fastest peer"] = Measurement(
                value=speed[precision] / best, target=2.0, unit="ratio"
            )
    return found


def curve(d: int, n_latents: int, batch: int, n_steps: int) -> Measurements:
    """How far the loss strays from dense fp32's over a whole training, from the same start.

    No latent counts as dead here. Where some do, losses part further (docs/training.md, "The same again").
    """
    world = World(d)
    batches = [world.tokens(batch) for _ in range(16)]
    lr, l1 = 1e-3, 5e-4
    config = config_of(ReluL1Config, n_latents=n_latents, l1_coefficient=l1)
    start = config.objective(batches[0], 1).sae()
    steppers = [
        peers.dense_relu_l1(start, l1, lr),
        *(
            ours(p, ReluL1(config_of(ReluL1Config, l1_coefficient=l1, precision=p), start), lr)  # type: ignore[arg-type]
            for p in ("float32", "bfloat16")
        ),
    ]
    losses = np.array([[peer.step(batches[i % 16]) for peer in steppers] for i in range(n_steps)])
    apart = np.abs(losses[:, 1:] / losses[:, :1] - 1).max(axis=0)
    return {
        f"ReLU-L1, loss over {n_steps} steps (d={d}, S={n_latents:,}): {name} apart from dense fp32": Measurement(
            value=float(value), target=0.01, unit="ratio"
        )
        for name, value in zip(("float32", "bfloat16"), apart, strict=True)
    }


def write_store(folder: Path, world: World, n_images: int, tokens_per_image: int = 197) -> Artifact:
    """Tokens of the world as an activation array."""
    values = world.tokens(n_images * tokens_per_image).half().numpy().reshape(n_images, tokens_per_image, -1)
    template = ActivationTemplate.plan(n_images, tokens_per_image, values.shape[2], "float16")
    artifact = Artifact("extract", "", folder)
    writer = ActivationWriter(Builder(artifact), template, TokenLayout(1, (1, tokens_per_image - 1)), {})
    for shard in range(template.n_shards):
        rows = template.shard_range(shard)
        writer.write(rows.start, values[rows.start : rows.stop])
    return artifact


def store_and_sweep(
    folder: Path, d: int, n_latents: int, batch: int, n_steps: int, rounds: int
) -> Measurements:
    """The engine fed from the store against steps on a tensor in memory, and four SAEs against one."""
    world = World(d)
    activations = Activations(write_store(folder / "activations", world, 64))
    x = world.tokens(batch)
    config = config_of(
        TopKConfig,
        n_latents=n_latents,
        k=32,
        batch_size=batch,
        n_steps=n_steps,
        precision="bfloat16",
    )
    stream = Stream(activations, range(activations.n_images), batch, 0)
    runtime = Runtime(checkpoint_seconds=1e9)
    token = torch.ones(batch, dtype=torch.int64)

    def member(i: int) -> Member:
        out = Builder(Artifact("train", "", folder / f"sae-{i}"))
        found = Member.begin(config.model_copy(update={"seed": i}), out, x, 197, ALONE)
        # No checkpoint at the end: the same work as the steps in memory.
        found.save = lambda: None  # type: ignore[method-assign]
        # The first step touches its memory for the first time.
        found.take_step(x, token)
        return found

    def from_store(n: int) -> float:
        members = [member(i) for i in range(n)]
        started = time.perf_counter()
        train.train(members, stream, runtime, ALONE)
        return time.perf_counter() - started

    def from_memory() -> float:
        alone = member(0)
        started = time.perf_counter()
        while alone.wants_steps():
            alone.take_step(x, token)
        return time.perf_counter() - started

    from_store(1)
    turns = [(from_memory(), from_store(1), from_store(4)) for _ in range(rounds)]
    memory, one, four = (statistics.median(times) for times in zip(*turns, strict=True))
    return {
        "TopK from the store / from memory": Measurement(value=memory / one, target=0.9, unit="ratio"),
        "four SAEs in one pass / one": Measurement(value=four / one, target=4.0, unit="ratio"),
    }


def peak_bytes(n_latents: int, batch: int, precision: str) -> int:
    """Most memory of a process that trains ReLU-L1 from its dense start, writes a checkpoint and goes on."""
    command = [sys.executable, "-m", "benchmarks.train", "--peak", str(n_latents), str(batch), precision]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _measure_peak(n_latents: int, batch: int, precision: str) -> None:
    x = World(768).tokens(batch)
    config = config_of(ReluL1Config, n_latents=n_latents, n_steps=3, precision=precision)
    config = config.model_copy(update={"dead_feature_window": 0})
    with tempfile.TemporaryDirectory() as folder:
        out = Builder(Artifact("train", "", Path(folder)))
        member = Member.begin(config, out, x, 1, ALONE)
        for _ in range(2):
            member.take_step(x, torch.ones(batch, dtype=torch.int64))
        member.save()
        member.take_step(x, torch.ones(batch, dtype=torch.int64))
        member.sae()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5, help="timed steps of each")
    options.add_argument("--curve-steps", type=int, default=500)
    options.add_argument(
        "--only", nargs="*", choices=["relu", "topk", "curve", "store", "memory"], help="some of the parts"
    )
    options.add_argument("--peak", nargs=3, metavar=("S", "BATCH", "PRECISION"), help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.peak:
        _measure_peak(int(arguments.peak[0]), int(arguments.peak[1]), arguments.peak[2])
        return
    folder = Path(tempfile.mkdtemp(prefix="patchsae-train-"))

    def memory() -> Measurements:
        return {
            f"peak memory, d=768, S=49,152, batch 4,096, {precision}": Measurement(
                value=peak_bytes(49_152, 4096, precision) / 1e9, target=8.0, unit="GB"
            )
            for precision in ("float32", "bfloat16")
        }

    parts: dict[str, Callable[[], Measurements]] = {
        "relu": lambda: relu(768, 12_288, 4096, arguments.rounds),
        "topk": lambda: {
            **topk(512, 4096, 1024, 4 * arguments.rounds),
            **topk(768, 12_288, 4096, arguments.rounds),
        },
        "curve": lambda: curve(256, 4096, 1024, arguments.curve_steps),
        "store": lambda: store_and_sweep(folder, 768, 12_288, 4096, 21, arguments.rounds),
        "memory": memory,
    }
    found: Measurements = {}
    try:
        for name, part in parts.items():
            if not arguments.only or name in arguments.only:
                found |= part()
    finally:
        shutil.rmtree(folder)
    assert all(math.isfinite(measurement["value"]) for measurement in found.values())
    report(f"training, {os.cpu_count()} cores, torch {torch.__version__}", found, arguments.json)


if __name__ == "__main__":
    main()
