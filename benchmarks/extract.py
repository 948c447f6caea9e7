"""Extraction (decode, forward, write) against the bare forward pass of `head` over the same decoded tensors."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.report import Measurement, parser, report
from patchsae.pipeline.activations import extract
from patchsae.pipeline.backbones import weights
from patchsae.pipeline.backbones.backbone import ExtractConfig
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.core.execute import execute
from patchsae.pipeline.core.resources import Resources
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.dag import Dag
from patchsae.pipeline.experiment.plan import Planner
from patchsae.pipeline.experiment.run import assignment
from patchsae.pipeline.images import indexed
from patchsae.pipeline.images.datasets.image_folder import ImageFolderConfig
from patchsae.storage.activations import Activations
from patchsae.storage.store import Store


def write_photographs(root: Path, n_images: int) -> None:
    """JPEG files of the size ImageNet is commonly stored at (short side 256)."""
    rng = np.random.default_rng(0)
    for i in range(n_images):
        path = root / f"class {i % 4}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (32, 43, 3), np.uint8))
        coarse.resize((341, 256), Image.Resampling.BICUBIC).save(path, quality=90)


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--model", default="ViT-B-16-quickgelu", help="open_clip architecture, random weights"
    )
    options.add_argument(
        "--images", type=int, default=400, help="starting a decoding process costs what some 40 images cost"
    )
    options.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    options.add_argument("--repeats", type=int, default=1)
    arguments = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="patchsae-extract-"))
    try:
        measure(folder, arguments)
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, arguments: object) -> None:
    options = vars(arguments)
    write_photographs(folder / "images", options["images"])
    torch.manual_seed(0)
    state = open_clip.create_model(options["model"]).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "weights.safetensors")
    dataset = ImageFolderConfig(root=str(folder / "images"))
    backbone_config = OpenClipConfig(
        model=options["model"],
        checkpoint=str(folder / "weights.safetensors"),
        extract=ExtractConfig(precision=options["precision"]),
    )
    dag = Dag({"images": dataset}, {"clip": backbone_config}, {}, {})
    address = dag.extract("images", "clip")
    nodes = list(dag.nodes.values())
    store = Store(folder / "store")
    runtime = Runtime.here(Resources())
    for node in nodes[:-1]:
        planned = Planner(store).plan(nodes)
        execute(store, [assignment(store, planned[node.address], planned)], runtime)
    planned = Planner(store).plan(nodes)
    work = assignment(store, planned[address], planned)
    backbone = weights.load_backbone(backbone_config, work.inputs, runtime.device)
    images = indexed.indexed_images(dataset, work.inputs["images"], backbone.preprocess)
    decoded = torch.stack([images[i] for i in range(len(images))])

    # The stage loads the backbone once, however many images follow: that is outside both timings.
    extract.load_backbone = lambda *_: backbone  # type: ignore[assignment]
    bare, ours = [], []
    for _ in range(options["repeats"] + 1):
        artifact = store.at("extract", work.key)
        if artifact.path.exists():
            store.discard(artifact)
        started = time.perf_counter()
        execute(store, [work], runtime)
        ours.append(time.perf_counter() - started)
        chunk = Activations(artifact).chunk_images
        started = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(decoded), chunk):
                backbone.head(decoded[start : start + chunk])
        bare.append(time.perf_counter() - started)
    ours_s, bare_s = min(ours[1:]), min(bare[1:])
    report(
        f"extraction, {options['model']}, {options['precision']}, {options['images']} JPEGs, {os.cpu_count()} cores",
        {
            "extract / bare head": Measurement(value=bare_s / ours_s, target=0.9, unit="ratio"),
            "extract": Measurement(value=len(decoded) / ours_s, target=None, unit="images/s"),
            "bare head": Measurement(value=len(decoded) / bare_s, target=None, unit="images/s"),
        },
        options["json"],
    )


if __name__ == "__main__":
    main()
