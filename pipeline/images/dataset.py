"""The interface of a dataset, with which the stages `index` and `extract` list and read its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image

from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.stage import Source


@dataclass(frozen=True)
class Record:
    """One image, before it is indexed.

    `source` is a relative path, or an id such as `train/17`. It is unique in the dataset and does not change.
    `label` is the class id; two classes may have the same `class_name`.
    """

    source: str
    label: int
    class_name: str
    split: str


class Dataset(Protocol):
    """A collection of images. It holds no open file, so it can be sent to other processes."""

    def class_names(self) -> list[str]:
        """The name of each class, in the order of the labels. Two classes may have the same name."""
        ...

    def records(self) -> Sequence[Record]:
        """Every image. The order depends only on the config and the source."""
        ...

    def read(self, record: Record) -> bytes:
        """The bytes of an image, which the index digests: the file's content, or the rendered pixels.

        Raises OSError if they cannot be read.
        """
        ...

    def decode(self, data: bytes) -> Image.Image:
        """The RGB image in `data`, which `read` returned. Raises OSError if it is not a readable image."""
        ...

    def fingerprint(self) -> str:
        """A string that changes when the images may have changed, such as a digest of file sizes and times.

        It is constant for generated data. Raises UserError if the source is not there.
        """
        ...


class DatasetConfig(Config):
    """Base of dataset configs. A subclass adds `kind: Literal[...] = ...` and `build`."""

    on_corrupt: Literal["exclude", "error"] = "exclude"
    """What happens to images that cannot be decoded: `exclude` lists them in the table `corrupt_images` and
    leaves them out, `error` stops."""

    def build(self) -> Dataset:
        """The dataset. Opens no file of it, so a missing file is noticed only when it is read."""
        raise NotImplementedError

    def templates(self) -> list[str]:
        """Zero-shot prompts that suit the classes, each with one `{}` in place of the class name."""
        return ["a photo of a {}."]

    def location(self) -> dict[str, str]:
        """Where the images lie, for the manifest; empty for images that are generated or in a package."""
        return {}

    def expected_images(self) -> int | None:
        """The number of images, if the config alone says it; None otherwise. Only predictions use it."""
        return None

    def source(self) -> Source:
        """The fingerprint, location and number of the images. Raises UserError if they are not there."""
        dataset = self.build()
        expected = self.expected_images()
        n_images = len(dataset.records()) if expected is None else expected
        return Source(dataset.fingerprint(), self.location(), n_images)
