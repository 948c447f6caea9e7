"""Dataset `shapes`: images of the shapes world, rendered when they are read and labelled by one attribute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import field_validator

from patchsae.pipeline.images.dataset import Dataset, DatasetConfig, Record
from patchsae.pipeline.shapes import world as shapes_world

N_BYTES = shapes_world.IMAGE_SIZE * shapes_world.IMAGE_SIZE * 3


class ShapesConfig(DatasetConfig):
    """Images of the shapes world, rendered when they are read."""

    kind: Literal["shapes"] = "shapes"
    seed: int
    """The seed of the world; another seed gives other images."""
    splits: dict[str, int]
    """Split of the world -> number of images."""
    label: Literal["shape", "colour", "texture", "background"] = "shape"
    """The attribute whose values are the classes."""

    def build(self) -> Shapes:
        return Shapes(self)

    def templates(self) -> list[str]:
        return list(shapes_world.TEMPLATES[self.label])

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
    """Implements `Dataset` for the shapes world. The source of a record is `split/index`.

    The class of an image is the value of the attribute `config.label`, of the first (largest) object if there
    are several. Label ids do not depend on the configured splits: pretraining values come first, withheld
    ones last.
    """

    def __init__(self, config: ShapesConfig) -> None:
        self.config = config

    def class_names(self) -> list[str]:
        # Of any two splits, the values are equal, or those of one split are the first values of the other.
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
