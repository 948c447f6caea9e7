"""Dataset `shapes`: images of the shapes world, rendered when they are read and labelled by one attribute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, get_args

import numpy as np
from PIL import Image
from pydantic import field_validator, model_validator

from patchsae.pipeline.core.config import HashedUnless
from patchsae.pipeline.images.dataset import Dataset, DatasetConfig, Record
from patchsae.pipeline.shapes import world as shapes_world
from patchsae.pipeline.shapes.pairs import pair
from patchsae.pipeline.shapes.shifts import Shift, shifted

Label = Literal["shape", "colour", "texture", "background"]
LABELS: tuple[Label, ...] = get_args(Label)
N_BYTES = shapes_world.IMAGE_SIZE * shapes_world.IMAGE_SIZE * 3


class ShapesConfig(DatasetConfig):
    """Images of the shapes world, rendered when they are read.

    Images of the split `two_objects` have the values of both objects as their labels. The attributes that are
    not the label are there for `masking` to read.
    """

    kind: Literal["shapes"] = "shapes"
    seed: int
    """The seed of the world; another seed gives other images."""
    splits: dict[str, int]
    """Split of the world -> number of images: of `pretrain`, `heldout`, `train`, `test`, `downstream_train`,
    `downstream_test` and `two_objects`, those that are wanted."""
    label: Label = "shape"
    """The attribute whose values are the classes."""
    shift: Annotated[Shift | None, HashedUnless(None)] = None
    """Another style for the same images and labels: `inverted` colours, `blurred`, or `outlined` objects."""
    pairs: Annotated[Label | None, HashedUnless(None)] = None
    """Images in pairs: image 2i + 1 of a split is its image 2i with another value of this attribute, and nothing
    else differs."""

    def build(self) -> Shapes:
        return Shapes(self)

    def templates(self) -> list[str]:
        return list(shapes_world.TEMPLATES[self.label])

    def attributes(self) -> Mapping[str, Sequence[str]]:
        return {name: shapes_world.TEMPLATES[name] for name in LABELS if name != self.label}

    def class_attribute(self) -> str:
        return self.label

    def expected_images(self) -> int:
        return sum(self.splits.values())

    def expected_splits(self) -> dict[str, int]:
        return dict(self.splits)

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

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> ShapesConfig:
        for name, n_images in self.splits.items():
            if self.pairs is not None and n_images % 2:
                raise ValueError(
                    f"splits asks for {n_images} images of {name!r}, which are no whole pairs; ask for "
                    f"{n_images + 1}"
                )
        return self


class Shapes(Dataset):
    """Implements `Dataset` for the shapes world. The source of a record is `split/index`.

    The class of an image is the value of the attribute `config.label`. If there are several objects, it is that
    of the first one; in the split `two_objects` the image has the classes of both. Label ids do not depend on the
    configured splits: pretraining values come first, withheld ones last.
    """

    def __init__(self, config: ShapesConfig) -> None:
        self.config = config

    def class_names(self) -> list[str]:
        return self.attribute_values(self.config.label)

    def records(self) -> Sequence[Record]:
        names = shapes_world.VALUES[self.config.label]
        records = []
        for split, n_images in self.config.splits.items():
            for index in range(n_images):
                labels = self._labels(self.config.label, split, index)
                several = tuple(sorted(labels)) if len(labels) > 1 else ()
                records.append(Record(f"{split}/{index}", labels[0], names[labels[0]], split, several))
        return records

    def read(self, record: Record) -> bytes:
        return shifted(self._layout(*_place(record.source)), self.config.shift).tobytes()

    def decode(self, data: bytes) -> Image.Image:
        if len(data) != N_BYTES:
            raise OSError(f"a shapes image has {N_BYTES} bytes, not {len(data)}; pass what read() returned")
        size = shapes_world.IMAGE_SIZE
        return Image.fromarray(np.frombuffer(data, np.uint8).reshape(size, size, 3))

    def fingerprint(self) -> str:
        return "generated"

    def scene(self, source: str) -> shapes_world.Scene:
        """An image with the masks of its objects, as they are drawn without `shift`."""
        return shapes_world.draw(self._layout(*_place(source)))

    def attribute_values(self, attribute: str) -> list[str]:
        # Of any two splits, the values are equal, or those of one split are the first values of the other.
        names: tuple[str, ...] = ()
        for split in self.config.splits:
            names = max(names, shapes_world.values_of(split)[attribute], key=len)
        return list(names)

    def attribute_labels(self, attribute: str, source: str) -> tuple[int, ...]:
        return self._labels(attribute, *_place(source))

    def _layout(self, split: str, index: int) -> shapes_world.Layout:
        if self.config.pairs is None:
            return shapes_world.layout(self.config.seed, split, index)
        # Members of a pair are scene i and its changed copy.
        return pair(self.config.seed, split, index // 2, self.config.pairs)[index % 2]

    def _labels(self, attribute: str, split: str, index: int) -> tuple[int, ...]:
        """The ids of an image's values: those of both objects in `two_objects`, else the first object's."""
        values = self._layout(split, index).values(attribute)
        if split != "two_objects":
            values = values[:1]
        return tuple(shapes_world.VALUES[attribute].index(value) for value in values)


def _place(source: str) -> tuple[str, int]:
    """The split and the number of an image."""
    split, index = source.split("/")
    return split, int(index)
