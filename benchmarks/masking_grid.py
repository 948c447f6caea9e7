"""The whole grid of masking for one data set, against one class-level curve per (classifier, selection) pair.

The grid is {class, dataset, random} x {on, off} x k, with two backbones that classify and two that select: four pairs.
Each backbone classifies in one evaluation that names the statistics of both. `base` and `novel` would divide the same
images between two evaluations, so they are not timed apart. A curve is `class`, on and off, for all k, with its own
encoding of the images. Both are CPU seconds, in turn, the least of several.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.masking import N_CLASSES, TimedParts
from benchmarks.report import Measurement, parser, report
from benchmarks.synthetic import World, build, write_activations
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.evaluations.kinds import masking, statistics
from patchsae.pipeline.evaluations.kinds.masking import MaskingConfig, MaskingStageConfig
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig
from patchsae.storage.store import Store

_N_PAIRS, _N_BACKBONES, _TARGET = 4, 2, 1.5


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="ViT-B-16", help="open_clip architecture, or shapes_clip")
    options.add_argument("--latents", type=int, default=49_152)
    options.add_argument("--images", type=int, default=5, help="that are classified")
    options.add_argument("--train-images", type=int, default=20, help="on which latents are selected")
    options.add_argument("--random", type=int, default=10, help="random rankings")
    options.add_argument("--repeats", type=int, default=4)
    arguments = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="patchsae-masking-grid-"))
    try:
        measure(folder, arguments)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    n_images = (arguments.train_images, arguments.images)
    world = build(folder, arguments.model, arguments.latents, *n_images, N_CLASSES)
    backbone = world.backbone.build({})
    selected = world.run(statistics.STAGE, StatisticsConfig(sae="sae"), Runtime())
    # The other backbone's activations differ by normal numbers of a third of their size.
    other = replace(world, store=Store(folder / "other"))
    noisy = write_activations(other.store, backbone, sum(n_images), noise=0.3)
    other = replace(other, inputs={**world.inputs, "activations": noisy})
    inputs = {
        **world.inputs,
        "statistics": selected,
        "statistics 1": other.run(statistics.STAGE, StatisticsConfig(sae="sae"), Runtime()),
        "selection_images 1": world.inputs["images"],
    }
    world = replace(world, inputs=inputs)
    grid = MaskingConfig(
        statistics=("a", "b"), selections=("class", "dataset", "random"), n_random=arguments.random
    )
    configs = {"curve": MaskingConfig(statistics="a", selections=("class",)), "grid": grid}
    least = dict.fromkeys(configs, float("inf"))
    # In turn, so that a slow minute of a shared machine does not meet one of them alone.
    for i in range(arguments.repeats):
        for name, config in configs.items():
            least[name] = min(least[name], timed(folder / f"{name}-{i}", world, config))
    curve, of_grid = least["curve"], _N_BACKBONES * least["grid"]
    n = arguments.images
    report(
        f"masking grid, {arguments.model}, {arguments.latents:,} latents, {len(grid.ks)} k, "
        f"{arguments.random} random rankings",
        {
            "grid / (pairs x curve)": Measurement(
                value=of_grid / (_N_PAIRS * curve), target=_TARGET, unit="ratio"
            ),
            "grid": Measurement(value=of_grid / n, target=None, unit="CPU s/image"),
            "curve": Measurement(value=curve / n, target=None, unit="CPU s/image"),
        },
        arguments.json,
    )


def timed(folder: Path, world: World, config: MaskingConfig) -> float:
    """CPU seconds of the parts of an evaluation, with models and the encoder already loaded."""
    parts = TimedParts(time.process_time)
    n_statistics = len(config.statistics_names())
    replace(world, store=Store(folder)).run(
        masking.STAGE,
        MaskingStageConfig(masking=config, backbone=world.backbone, counted=(None,) * n_statistics),
        Runtime(map_parts=parts),
    )
    return parts.seconds


if __name__ == "__main__":
    main()
