"""What ShapesCLIP sees of the shapes world: one and two objects, other styles, and values it was not trained on.

For every attribute, the share of images whose n values have the n largest cosines, among the values it was trained
on. Of images with a withheld value: the share whose value has the largest cosine among all values (zero-shot), and
among the withheld ones (forced choice). And how many images of the world one core renders in a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.report import Measurement, Measurements, parser, report, seconds
from patchsae.pipeline.backbones.models.shapes_clip import ShapesClipConfig
from patchsae.pipeline.classification.zero_shot import all_on_top
from patchsae.pipeline.images.datasets.shapes import LABELS
from patchsae.pipeline.shapes import world
from patchsae.pipeline.shapes.shifts import Shift, shifted

SEED = 1
WITHHELD = {"shape": world.WITHHELD_SHAPES, "texture": world.WITHHELD_TEXTURES}
PLACES: tuple[tuple[str, str, Shift | None], ...] = (
    ("one object", "test", None),
    ("two objects", "two_objects", None),
    ("inverted", "test", "inverted"),
    ("blurred", "test", "blurred"),
    ("outlined", "test", "outlined"),
)


def image_features(backbone: Any, plans: Sequence[world.Layout], shift: Shift | None = None) -> Tensor:
    """[images, E], of length 1."""
    pixels = [backbone.preprocess(Image.fromarray(shifted(plan, shift))) for plan in plans]
    found = [
        backbone.tail(backbone.head(torch.stack(pixels[i : i + 100]))) for i in range(0, len(pixels), 100)
    ]
    return normalize(torch.cat(found), dim=-1)


def right(
    backbone: Any, features: Tensor, plans: Sequence[world.Layout], attribute: str, values: Sequence[str]
) -> float:
    """The share of images whose values of an attribute are on top among `values`."""
    embeddings = backbone.class_embeddings(values, world.TEMPLATES[attribute], True)
    shown = torch.tensor([[value in plan.values(attribute) for value in values] for plan in plans])
    return float(all_on_top(features @ embeddings.T, shown).double().mean())


@torch.inference_mode()
def measure(n_images: int) -> Measurements:
    backbone = ShapesClipConfig().build({})
    found: dict[str, float] = {}
    for name, split, shift in PLACES:
        plans = [world.layout(SEED, split, index) for index in range(n_images)]
        features = image_features(backbone, plans, shift)
        for attribute in LABELS:
            values = world.PRETRAINING_VALUES[attribute]
            found[f"{name}: {attribute}"] = right(backbone, features, plans, attribute, values)
    every = [world.layout(SEED, "downstream_test", index) for index in range(6 * n_images)]
    for attribute, withheld in WITHHELD.items():
        plans = [plan for plan in every if plan.value(attribute) in withheld][:n_images]
        features = image_features(backbone, plans)
        for name, values in (("among all values", world.VALUES[attribute]), ("forced choice", withheld)):
            found[f"withheld {attribute}: {name}"] = right(backbone, features, plans, attribute, values)
    return {name: Measurement(value=value, target=None, unit="share") for name, value in found.items()}


def rendering(n_images: int) -> Measurements:
    """Images rendered in a second, with the masks of the shapes in the cache."""

    def render() -> None:
        for index in range(n_images):
            world.render(0, "pretrain", index)

    return {
        "rendering, one core": Measurement(value=n_images / seconds(render), target=1000.0, unit="images/s")
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=600, help="images per line, at most")
    arguments = options.parse_args()
    report(
        f"ShapesCLIP on the shapes world, {arguments.images} images",
        {**measure(arguments.images), **rendering(arguments.images)},
        arguments.json,
    )


if __name__ == "__main__":
    main()
