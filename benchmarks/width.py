"""A full-width ReLU-L1 SAE: 49,152 latents of ViT-B/16's shapes, fresh (half of them on) and trained (L0 150).

The plain dense products are those that no implementation can do without: encoding and decoding of a block, and for a
training step the three products of its gradients besides. Each ratio is of CPU time in one run.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import Measurement, Measurements, parser, report
from benchmarks.synthetic import L0, build, random_sae
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.evaluations.kinds import masking, reconstruction, statistics
from patchsae.pipeline.evaluations.kinds.masking import MaskingConfig, MaskingStageConfig
from patchsae.pipeline.evaluations.kinds.reconstruction import (
    ReconstructionConfig,
    ReconstructionStageConfig,
)
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.pipeline.evaluations.masking.sweep import sweep
from patchsae.pipeline.evaluations.statistics.counts import PartCounts
from patchsae.pipeline.saes.encode import EncoderChoice, LatentEncoder
from patchsae.pipeline.saes.quality import Quality
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.latents import images_per_block, tokens_per_block
from patchsae.pipeline.training import train
from patchsae.pipeline.training.objective import Precision
from patchsae.pipeline.training.objectives.relu_l1 import ReluL1, ReluL1Config

_TOKENS_PER_IMAGE = 197
_KS = np.array([1, 2, 5, 10, 50, 100, 500, 1000, 2000])


def cpu_seconds(function: Callable[[], object], repeats: int) -> float:
    """The least CPU seconds of a call, after one that warms up."""
    taken = []
    for _ in range(repeats + 1):
        started = time.process_time()
        function()
        taken.append(time.process_time() - started)
    return min(taken[1:])


def config_of(precision: Precision, **settings: object) -> ReluL1Config:
    return ReluL1Config(dataset="-", backbone="-", precision=precision, **settings)  # type: ignore[arg-type]


def plain_step(sae: Sae, x: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """The five products of a dense training step, block by block."""
    encoder, W_dec, tokens = sae.W_enc.T.to(dtype).contiguous(), sae.W_dec.to(dtype), x.to(dtype)
    grads = torch.zeros(2, *sae.W_dec.shape)

    def step() -> None:
        for block in tokens.split(tokens_per_block(sae.n_latents)):
            f = block @ encoder.T
            x_hat = f @ W_dec
            d_h = x_hat @ W_dec.T
            grads[0] += f.T @ x_hat
            grads[1] += d_h.T @ block

    return step


def steps(d: int, n_latents: int, batch: int, repeats: int) -> Measurements:
    sae, x = random_sae(d, n_latents, n_latents / 2), torch.randn(batch, d)
    token = torch.ones(batch, dtype=torch.int64)
    found: Measurements = {}
    for precision in ("float32", "bfloat16"):
        ours = ReluL1(config_of(precision), sae)
        plain = cpu_seconds(plain_step(sae, x, getattr(torch, precision)), repeats)
        taken = cpu_seconds(lambda ours=ours: ours.gradients(x, token), repeats)  # type: ignore[misc]
        label = f"fresh SAE, training step of {batch:,} tokens, {precision}"
        found[label] = Measurement(value=taken, target=None, unit="CPU s")
        found[f"{label} / plain products"] = Measurement(value=taken / plain, target=1.2, unit="ratio")
    return found


def blocks(d: int, n_latents: int, repeats: int) -> Measurements:
    n_images = images_per_block(n_latents, _TOKENS_PER_IMAGE)
    x = torch.randn(n_images * _TOKENS_PER_IMAGE, d)
    labels, images = np.zeros(n_images, np.int64), np.arange(n_images)
    ranking = torch.stack([torch.randperm(n_latents)[: _KS[-1]] for _ in range(n_images)])
    found: Measurements = {}
    for name, l0 in (("fresh", n_latents / 2), ("trained", L0)):
        sae = random_sae(d, n_latents, l0)
        chosen = EncoderChoice.for_device("cpu", d, n_latents)

        def evaluations(choice: EncoderChoice, sae: Sae = sae) -> dict[str, Callable[[], object]]:
            encoder = LatentEncoder(sae, choice)

            def reconstructing() -> None:
                quality = Quality(d, n_latents)
                for rows, latents in encoder.blocks(x):
                    quality.add(x[rows], latents.decode(latents.value, sae.W_dec) + sae.b_dec, latents)

            def counting() -> None:
                PartCounts(n_latents, 10).add(encoder.block(x), images, labels, 0.2)

            def masking() -> None:
                latents = encoder.block(x)
                latents.decode(latents.value, sae.W_dec)
                for _ in sweep(latents, n_images, ranking, _KS, sae.W_dec):
                    pass

            return {
                "reconstruction": reconstructing,
                "statistics": counting,
                "masking, without the tail": masking,
            }

        def products(sae: Sae = sae) -> object:
            return sae.encode(x) @ sae.W_dec

        with torch.inference_mode():
            plain = cpu_seconds(products, repeats)
            ours = {n: cpu_seconds(f, repeats) for n, f in evaluations(chosen).items()}
            if name == "fresh":
                for evaluation, taken in ours.items():
                    found[f"fresh SAE, {evaluation} / plain products"] = Measurement(
                        value=taken / plain, target=1.2, unit="ratio"
                    )
                continue
            dense = {
                n: cpu_seconds(f, repeats) for n, f in evaluations(EncoderChoice("float32", 0.0)).items()
            }
            for evaluation, taken in ours.items():
                found[f"trained SAE, {evaluation}: dense / fast encoder"] = Measurement(
                    value=dense[evaluation] / taken, target=2.0, unit="ratio"
                )
    return found


def whole(folder: Path, model: str, n_latents: int, n_steps: int, batch: int, images: int) -> Measurements:
    """Wall-clock seconds of every stage after `extract`, for a fresh SAE of a few steps."""
    world = build(folder, model, n_latents, images, max(2, images // 4), 10)
    found: Measurements = {}

    def timed(stage: object, config: object) -> None:
        nonlocal world
        started = time.perf_counter()
        made = world.run(stage, config, Runtime())  # type: ignore[arg-type]
        role = {"train": "sae"}.get(stage.name, stage.name)  # type: ignore[attr-defined]
        seconds = time.perf_counter() - started
        found[f"{role}, {model}, {images} images"] = Measurement(value=seconds, target=None, unit="s")
        world = replace(world, inputs={**world.inputs, role: made})

    timed(train.STAGE, config_of("bfloat16", n_latents=n_latents, n_steps=n_steps, batch_size=batch))
    timed(statistics.STAGE, StatisticsConfig(sae="sae"))
    on_test = ReconstructionConfig(sae="sae")
    timed(reconstruction.STAGE, ReconstructionStageConfig(reconstruction=on_test, backbone=world.backbone))
    masked = MaskingConfig(statistics="statistics")
    timed(masking.STAGE, MaskingStageConfig(masking=masked, backbone=world.backbone))
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="ViT-B-16", help="open_clip architecture, or shapes_clip")
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--latents", type=int, default=49_152)
    options.add_argument("--batch", type=int, default=4096)
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--images", type=int, default=24, help="that are trained on")
    options.add_argument("--repeats", type=int, default=2)
    options.add_argument("--only", nargs="*", choices=["steps", "blocks", "whole"], help="some of the parts")
    a: argparse.Namespace = options.parse_args()
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp(prefix="patchsae-width-"))
    parts: dict[str, Callable[[], Measurements]] = {
        "steps": lambda: steps(a.width, a.latents, a.batch, a.repeats),
        "blocks": lambda: blocks(a.width, a.latents, a.repeats),
        "whole": lambda: whole(folder, a.model, a.latents, a.steps, a.batch, a.images),
    }
    found: Measurements = {}
    try:
        for name, part in parts.items():
            if not a.only or name in a.only:
                found |= part()
    finally:
        shutil.rmtree(folder)
    report(f"{a.latents:,} latents of ReLU-L1, {torch.get_num_threads()} threads", found, a.json)


if __name__ == "__main__":
    main()
