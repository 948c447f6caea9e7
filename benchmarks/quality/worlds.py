"""What the SAEs of the quality benchmark are trained and measured on: the shapes world, and photographs.

Each world has images to train on, images to choose settings by (`tune`), and images that only the reported table
uses (`test`). No image is in two of them, and no pixel of a photograph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.core.resources import Resources
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import Experiment
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.images.tables import split_range
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store

World = Literal["shapes", "photographs"]
Split = Literal["train", "tune", "test"]
N_TRAIN, N_HELD_OUT = 4000, 1000
TWO_OBJECTS = {"kind": "shapes", "seed": 1, "splits": {"two_objects": 600}, "label": "colour"}
_PHOTOGRAPHS = [
    "astronaut",
    "brick",
    "cat",
    "chelsea",
    "coffee",
    "colorwheel",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "motorcycle_left",
    "retina",
    "rocket",
    "camera",
    "coins",
    "moon",
    "page",
    "text",
]


def write_crops(folder: Path) -> None:
    """Crops of 64 to 192 pixels of photographs, as 64 x 64 PNGs.

    `train` is cut from the left three quarters of each photograph, `tune` from the upper and `test` from the lower
    half of the right quarter.
    """
    rng = np.random.default_rng(0)
    pictures = list(load_sample_images().images)
    for name in _PHOTOGRAPHS:
        if hasattr(skimage.data, name):
            try:
                pictures.append(getattr(skimage.data, name)())
            except (ModuleNotFoundError, OSError):
                continue  # Comes by download, or needs pooch for it.
    for split, n in (("train", N_TRAIN), ("tune", N_HELD_OUT), ("test", N_HELD_OUT)):
        for i in range(n):
            picture = Image.fromarray(np.asarray(pictures[i % len(pictures)])).convert("RGB")
            height = picture.height if split == "train" else picture.height // 2
            most = min(192, height, picture.width // 4)
            side = int(rng.integers(min(64, most), most + 1))
            border = 3 * picture.width // 4
            low, high = (0, border - side) if split == "train" else (border, picture.width - side)
            upper = picture.height // 2 if split == "test" else 0
            left, top = int(rng.integers(low, high + 1)), int(rng.integers(upper, upper + height - side + 1))
            path = folder / split / f"picture {i % len(pictures)}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.crop((left, top, left + side, top + side)).resize((64, 64)).save(path)


def dataset_of(world: World, folder: Path) -> dict[str, Any]:
    """The dataset of a world; the crops are written below `folder` if they are not there."""
    if world == "shapes":
        splits = {"train": N_TRAIN, "test": 2 * N_HELD_OUT}
        return {"kind": "shapes", "seed": 1, "splits": splits, "label": "shape"}
    done = folder / "crops.done"
    if not done.exists():
        write_crops(folder / "crops")
        done.touch()
    return {
        "kind": "image_folder",
        "root": str(folder / "crops"),
        "splits": {"train": "train", "tune": "tune", "test": "test"},
    }


def rows_of_split(world: World, images: Artifact, split: Split) -> range:
    """The images of a split. The first half of the shapes' `test` is for choosing, the second for reporting."""
    if world == "photographs" or split == "train":
        return split_range(images, split)
    rows = split_range(images, "test")
    return rows[:N_HELD_OUT] if split == "tune" else rows[N_HELD_OUT:]


def inputs_of(
    store: Store, dataset: dict[str, Any], zero_shot: bool
) -> tuple[BackboneConfig, dict[str, Artifact]]:
    """ShapesCLIP, and what is made of a data set by it; a classifier only if it knows the words for its classes."""
    experiment = Experiment.model_validate(
        {
            "name": "quality",
            "datasets": {"images": dataset},
            "backbones": {"clip": {"kind": "shapes_clip", "extract": {"hook_block": -2}}},
            "saes": {"sae": {"kind": "topk", "dataset": "images", "backbone": "clip"}},
            "evaluations": {"evaluation": {"kind": "reconstruction", "sae": "sae"}},
        }
    )
    stages = {"activations": "extract", "images": "index", "weights": "weights"}
    if zero_shot:
        stages["classifier"] = "classifier"
    built = run(work_on(store, experiment, list(stages.values())), Runtime.here(Resources()))
    made = {artifact.stage: artifact for artifact in built.values()}
    return experiment.backbones["clip"], {role: made[stage] for role, stage in stages.items()}
