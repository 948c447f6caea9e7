"""What a dataset is: a list of records and a way to open each as an RGB image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image

from pipeline.config import Config


@dataclass(frozen=True)
class Record:
    """One image before it is indexed.

    `source` is stable and unique inside the dataset (a relative path, or an id such as `train/17`).
    `label` identifies the class; two classes may share a `class_name`.
    """

    source: str
    label: int
    class_name: str
    split: str


class Dataset(Protocol):
    """An image collection. Built from its config; holds no open file, so worker processes can copy it."""

    def class_names(self) -> list[str]:
        """Names in label order, `len == n_classes`; names may repeat."""
        ...

    def records(self) -> Sequence[Record]:
        """Every image, in an order that depends on the config and the source alone."""
        ...

    def read(self, record: Record) -> bytes:
        """The bytes that identify the image (the file's content, or the rendered pixels).

        Raises OSError if they cannot be read.
        """
        ...

    def decode(self, data: bytes) -> Image.Image:
        """The RGB image in `data`, as returned by `read`. Raises OSError if it is no readable image."""
        ...

    def fingerprint(self) -> str:
        """A cheap sign of the source's present state (sizes and times of files); it changes when the
        source may have changed. Constant for generated data. Raises UserError if the source is not there."""
        ...


class DatasetConfig(Config):
    """Base of dataset configs; a subclass adds `kind: Literal[...] = ...` and `build`."""

    on_corrupt: Literal["exclude", "error"] = "exclude"
    """Images that cannot be decoded: list them in the table `corrupt_images` and go on, or stop."""

    def build(self) -> Dataset:
        """The dataset. Touches no file: what is missing is found when it is read."""
        raise NotImplementedError

    def templates(self) -> list[str]:
        """Zero-shot prompts that suit the classes, each with one `{}` for the class name."""
        return ["a photo of a {}."]

    def expected_images(self) -> int | None:
        """How many images there will be, if that can be told cheaply; for predictions only."""
        return None
