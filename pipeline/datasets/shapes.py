"""The shapes world as a dataset: rendered on demand, labelled by one attribute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import field_validator

from pipeline import shapes_world
from pipeline.datasets.base import Dataset, DatasetConfig, Record

N_BYTES = shapes_world.IMAGE_SIZE * shapes_world.IMAGE_SIZE * 3

TEMPLATES = {
    "shape": ("a photo of a {}", "an image of a {}", "a picture of a {}"),
    "colour": ("a photo of a {} object", "an image of a {} object", "a picture of a {} object"),
    "texture": ("a photo of a {} object", "an image of a {} object", "a picture of a {} object"),
    "size": ("a photo of a {} object", "an image of a {} object", "a picture of a {} object"),
    "background": (
        "a photo of an object on a {} background",
        "an image of an object on a {} background",
        "a picture of an object on a {} background",
    ),
}
"""Zero-shot prompts per attribute, in the language of the captions; `{}` stands for the value."""


class ShapesConfig(DatasetConfig):
    """Which images of which shapes world. `splits` maps a split of the world to a number of images."""

    kind: Literal["shapes"] = "shapes"
    seed: int
    splits: dict[str, int]
    label: Literal["shape", "colour", "texture", "background"] = "shape"

    def build(self) -> Shapes:
        return Shapes(self)

    def templates(self) -> list[str]:
        return list(TEMPLATES[self.label])

    def expected_images(self) -> int:
        return sum(self.splits.values())

    @field_validator("seed")
    @classmethod
    def _seed_counts(cls, seed: int) -> int:
        if seed < 0:
            raise ValueError(f"seed is {seed}; choose 0 or a positive number")
        return seed

    @field_validator("splits")
    @classmethod
    def _splits_exist(cls, splits: dict[str, int]) -> dict[str, int]:
        if not splits:
            raise ValueError(f"splits is empty; name at least one of {', '.join(shapes_world.SPLITS)}")
        for name, n_images in splits.items():
            if name not in shapes_world.SPLITS:
                raise ValueError(
                    f"splits names {name!r}, which the shapes world does not have; "
                    f"choose from {', '.join(shapes_world.SPLITS)}"
                )
            if n_images < 1:
                raise ValueError(f"splits asks for {n_images} images of {name!r}; ask for at least 1")
        return splits


class Shapes(Dataset):
    """Images of the shapes world; a record's source is `split/index`.

    The label is the value of `config.label`; with several objects, that of the first (largest) one.
    Label ids are the same whichever splits are configured: pretraining values first, withheld ones last.
    """

    def __init__(self, config: ShapesConfig) -> None:
        self.config = config

    def class_names(self) -> list[str]:
        # The values of any two splits are equal, or one is the beginning of the other.
        names: tuple[str, ...] = ()
        for split in self.config.splits:
            names = max(names, shapes_world.values_of(split)[self.config.label], key=len)
        return list(names)

    def records(self) -> Sequence[Record]:
        label_ids = {name: i for i, name in enumerate(shapes_world.VALUES[self.config.label])}
        records = []
        for split, n_images in self.config.splits.items():
            for index in range(n_images):
                name = shapes_world.layout(self.config.seed, split, index).value(self.config.label)
                records.append(Record(f"{split}/{index}", label_ids[name], name, split))
        return records

    def read(self, record: Record) -> bytes:
        split, index = record.source.split("/")
        return shapes_world.render(self.config.seed, split, int(index)).image.tobytes()

    def decode(self, data: bytes) -> Image.Image:
        if len(data) != N_BYTES:
            raise OSError(f"a shapes image has {N_BYTES} bytes, not {len(data)}; pass what read() returned")
        size = shapes_world.IMAGE_SIZE
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(size, size, 3))

    def fingerprint(self) -> str:
        return "generated"
