"""Dataset `digits`: scikit-learn's 1,797 handwritten digits of 8x8 pixels, which come with that library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from patchsae.pipeline.images.dataset import Dataset, DatasetConfig, Record

_SIDE = 8
_LARGEST = 16
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class DigitsConfig(DatasetConfig):
    """Scikit-learn's handwritten digits. Every fifth image is in the split `test`, the others in `train`."""

    kind: Literal["digits"] = "digits"
    n_images: int = Field(1797, ge=10, le=1797)
    """Only the first images are used, this many."""

    def build(self) -> Digits:
        return Digits(self)

    def templates(self) -> list[str]:
        return ['a photo of the number: "{}".']

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
        return list(_NAMES)

    def records(self) -> Sequence[Record]:
        return [
            Record(str(i), int(self.labels[i]), _NAMES[self.labels[i]], "test" if i % 5 == 4 else "train")
            for i in range(self.config.n_images)
        ]

    def read(self, record: Record) -> bytes:
        return self.pixels[int(record.source)].tobytes()

    def decode(self, data: bytes) -> Image.Image:
        return Image.frombytes("L", (_SIDE, _SIDE), data).convert("RGB")

    def fingerprint(self) -> str:
        return "scikit-learn digits"
