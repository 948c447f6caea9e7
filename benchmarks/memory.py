"""Peak memory of statistics, gallery and masking at the paper's size: 49,152 latents, ViT-B/16's shapes, random weights.

Each stage runs in a process of its own, as one Dask worker does. A whole shard of activations, of which few images
leave most out, adds 0.2 GB at most.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.report import Measurement, parser, report
from benchmarks.synthetic import build, reopen
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.evaluations.kinds import gallery, masking, statistics
from patchsae.pipeline.evaluations.kinds.gallery import GalleryConfig, GalleryStageConfig
from patchsae.pipeline.evaluations.kinds.masking import MaskingConfig, MaskingStageConfig
from patchsae.pipeline.evaluations.kinds.statistics import StatisticsConfig

STAGES = ("statistics", "gallery", "masking")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="ViT-B-16", help="open_clip architecture, or shapes_clip")
    options.add_argument("--latents", type=int, default=49_152)
    options.add_argument("--classes", type=int, default=1000)
    options.add_argument("--train-images", type=int, default=64)
    options.add_argument("--test-images", type=int, default=16)
    options.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--child", choices=["build", *STAGES], help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.child is not None:
        run(arguments)
        return
    folder = Path(tempfile.mkdtemp(prefix="patchsae-memory-"))
    try:
        peaks = {child: peak_gigabytes(child, folder) for child in ("build", *STAGES)}
    finally:
        shutil.rmtree(folder)
    report(
        f"peak resident memory, {arguments.model}, {arguments.latents:,} latents, {arguments.classes} classes",
        {stage: Measurement(value=peaks[stage], target=4.0, unit="GB") for stage in STAGES},
        arguments.json,
    )


def peak_gigabytes(child: str, folder: Path) -> float:
    """Runs one step in a fresh process; returns the most memory it had."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.memory",
        *sys.argv[1:],
        "--folder",
        str(folder),
        "--child",
        child,
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def run(arguments: argparse.Namespace) -> None:
    """One step; prints its peak memory in GB as the last line."""
    if arguments.child == "build":
        build(
            arguments.folder,
            arguments.model,
            arguments.latents,
            arguments.train_images,
            arguments.test_images,
            arguments.classes,
        )
    else:
        world = reopen(arguments.folder, arguments.model)
        if arguments.child == "statistics":
            world.run(statistics.STAGE, StatisticsConfig(sae="sae"), Runtime())
        elif arguments.child == "gallery":
            looked = GalleryStageConfig(
                gallery=GalleryConfig(statistics="statistics", n_embedded=arguments.test_images),
                statistics=StatisticsConfig(sae="sae"),
                backbone=world.backbone,
            )
            world.run(gallery.STAGE, looked, Runtime())
        else:
            config = MaskingStageConfig(
                masking=MaskingConfig(statistics="statistics"), backbone=world.backbone
            )
            world.run(masking.STAGE, config, Runtime())
    # Linux counts it in kibibytes.
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


if __name__ == "__main__":
    main()
