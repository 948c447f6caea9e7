"""Dataset `digits`: scikit-learn's 1,797 handwritten digits of 8x8 pixels, which come with that library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from patchsae.pipeline.core.config import HashedUnless, Unhashed
from patchsae.pipeline.images.dataset import Dataset, DatasetConfig, Record

_SIDE = 8
_LARGEST = 16
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class DigitsConfig(DatasetConfig):
    """Scikit-learn's handwritten digits. Every fifth image is in the split `test`, the others in `train`."""

    kind: Literal["digits"] = "digits"
    n_images: int = Field(1797, ge=10, le=1797)
    """Only the first images are used, this many."""
    class_names: Annotated[tuple[str, ...] | None, HashedUnless(None)] = None
    """The names of the ten digits, for a backbone that cannot read `zero` to `nine`, which are the default."""
    prompts: Annotated[tuple[str, ...], Unhashed("hashed by the stage that uses them")] = (
        'a photo of the number: "{}".',
    )
    """Zero-shot prompts, with `{}` in place of the class name."""

    @field_validator("class_names")
    @classmethod
    def _one_for_each_digit(cls, class_names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if class_names is not None and len(class_names) != len(_NAMES):
            raise ValueError(f"has {len(class_names)} names; give ten, from that of 0 to that of 9")
        return class_names

    def build(self) -> Digits:
        return Digits(self)

    def templates(self) -> list[str]:
        return list(self.prompts)

    def expected_images(self) -> int | None:
        return self.n_images


class Digits(Dataset):
    """Implements `Dataset`."""

    def __init__(self, config: DigitsConfig) -> None:
        from sklearn.datasets import load_digits

        self.config = config
        bunch = load_digits()
        self.pixels = np.round(bunch.images * (255 / _LARGEST)).astype(np.uint8)
        self.labels = bunch.target

    def class_names(self) -> list[str]:
        return list(self.config.class_names or _NAMES)

    def records(self) -> Sequence[Record]:
        names = self.class_names()
        return [
            Record(str(i), int(self.labels[i]), names[self.labels[i]], "test" if i % 5 == 4 else "train")
            for i in range(self.config.n_images)
        ]

    def read(self, record: Record) -> bytes:
        return self.pixels[int(record.source)].tobytes()

    def decode(self, data: bytes) -> Image.Image:
        return Image.frombytes("L", (_SIDE, _SIDE), data).convert("RGB")

    def fingerprint(self) -> str:
        return "scikit-learn digits"
