"""Masking for all k in both directions, against the reference's protocol on the same model and images.

The reference runs the whole model 21 times per image: once as it is, and for each k and direction with a hook that
encodes densely, masks and decodes densely (spec 5.1). Here: the stage's own part, from cached activations.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.report import Measurement, parser, report, seconds
from benchmarks.synthetic import World, build
from patchsae.pipeline.classification.classifier import load_classifier
from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.stage import Inputs, PartStage, Runtime
from patchsae.pipeline.evaluations.kinds import masking, statistics
from patchsae.pipeline.evaluations.kinds.masking import MaskingConfig, MaskingStageConfig
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.pipeline.evaluations.statistics.rankings import class_ranking
from patchsae.pipeline.saes.sae import load_sae
from patchsae.storage.artifacts import Builder

N_CLASSES = 10
_DENSE_TOKENS = 2048


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="ViT-B-16", help="open_clip architecture, or shapes_clip")
    options.add_argument("--latents", type=int, default=49_152)
    options.add_argument("--images", type=int, default=5, help="that are classified")
    options.add_argument("--train-images", type=int, default=20, help="on which latents are selected")
    arguments = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="patchsae-masking-"))
    try:
        measure(folder, arguments)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    n_train, n_test = arguments.train_images, arguments.images
    world = build(folder, arguments.model, arguments.latents, n_train, n_test, N_CLASSES)
    selected = world.run(statistics.STAGE, StatisticsConfig(sae="sae"), Runtime())
    world = replace(world, inputs={**world.inputs, "statistics": selected})
    config = MaskingStageConfig(
        masking=MaskingConfig(statistics="statistics", selections=("class",)),
        backbone=world.backbone,
    )
    timed = TimedParts()
    world.run(masking.STAGE, config, Runtime(map_parts=timed))
    backbone: Any = world.backbone.build({})
    images = torch.randn(n_test, 3, *backbone.image_size)
    with torch.inference_mode():
        head = seconds(lambda: backbone.head(images), 1)
        theirs = reference(world, config, backbone, images)
    ours = timed.seconds
    report(
        f"masking, {arguments.model}, {arguments.latents:,} latents, {len(config.masking.ks)} k, on and off",
        {
            "reference protocol / masking": Measurement(value=theirs / ours, target=10.0, unit="ratio"),
            "reference protocol / (head + masking)": Measurement(
                value=theirs / (head + ours), target=None, unit="ratio"
            ),
            "masking": Measurement(value=ours / n_test, target=None, unit="s/image"),
            "reference protocol": Measurement(value=theirs / n_test, target=None, unit="s/image"),
        },
        arguments.json,
    )


class TimedParts:
    """Runs every part twice in one worker, so that loading models is not in the time."""

    seconds = 0.0

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def __call__(
        self,
        stage: PartStage,
        config: Config,
        inputs: Inputs,
        out: Builder,
        runtime: Runtime,
        parts: Sequence[int],
    ) -> None:
        worker = stage.worker(config, inputs, out, runtime)
        for _ in range(2):
            started = self._clock()
            for part in parts:
                stage.do_part(worker, out, part)
            self.seconds = self._clock() - started


def reference(world: World, config: MaskingStageConfig, backbone: Any, images: Tensor) -> float:
    """Seconds of one plain pass and one pass per k and direction, with all weights loaded.

    All images are taken to be of one class, so that they share masks and batches, which favours the reference.
    """
    sae = load_sae(world.inputs["sae"])
    classifier, _ = load_classifier(world.inputs["classifier"])
    ranking = torch.from_numpy(
        class_ranking(world.inputs["statistics"], sae.n_latents, 1, sae.n_latents)[0]
    ).long()
    ks = [*config.masking.finite_ks(sae.n_latents), sae.n_latents]
    step = max(1, _DENSE_TOKENS // backbone.layout.n_tokens)

    def classify(mask: Tensor | None) -> None:
        def replaced(module: Any, arguments: Any, output: Tensor) -> Tensor:
            latents = sae.encode(output.flatten(0, 1)) * mask
            return (latents @ sae.W_dec + sae.b_dec).view_as(output)

        block = backbone.blocks[backbone.hook_block]
        hooks = [] if mask is None else [block.register_forward_hook(replaced)]
        for start in range(0, len(images), step):
            features = backbone.model.encode_image(images[start : start + step])
            (normalize(features, dim=-1) @ classifier.T).argmax(dim=-1)
        for hook in hooks:
            hook.remove()

    classify(None)
    started = time.perf_counter()
    classify(None)
    for k in ks:
        on = torch.zeros(sae.n_latents)
        on[ranking[:k]] = 1
        classify(on)
        classify(1 - on)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
