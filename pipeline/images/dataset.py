"""The interface of a dataset, with which the stages `index` and `extract` list and read its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

from PIL import Image
from pydantic import Field

from patchsae.pipeline.core.config import Config, HashedUnless
from patchsae.pipeline.core.prediction import Source
from patchsae.pipeline.images.pixels import Facts, Reading, Thumbnail

DEFAULT_SIDE, MOST_WITH_THUMBNAILS = 96, 100_000
"""The longest side of thumbnails in pixels, and the number of images from which on there are none by default."""


@dataclass(frozen=True)
class Record:
    """One image, before it is indexed.

    `source` is a relative path, or an id such as `train/17`. It is unique in the dataset and does not change.
    `label` is the class id; two classes may have the same `class_name`. An image of several classes has all their
    ids in `labels`, and one of them as its `label`; `labels` is empty for an image of one class.
    """

    source: str
    label: int
    class_name: str
    split: str
    labels: tuple[int, ...] = ()


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

    def inspect(self, data: bytes) -> Facts:
        """The facts of the image that `decode` would make of `data`. Raises OSError where `decode` does."""
        image = self.decode(data)
        return Facts(image.width, image.height)

    def inspect_small(self, data: bytes, side: int) -> tuple[Facts, Thumbnail | None]:
        """What `inspect` finds, and a thumbnail of at most `side` x `side` pixels from the same decoding.

        None for datasets whose config has no `thumbnails`.
        """
        return self.inspect(data), None

    def remarks(self) -> Sequence[str]:
        """What a user should know of the source, such as which files were left out: sentences without a stop."""
        return ()

    def fingerprint(self) -> str:
        """A string that changes when the images may have changed, such as a digest of file sizes and times.

        It is constant for generated data. Raises UserError if the source is not there.
        """
        ...

    def attribute_values(self, attribute: str) -> list[str]:
        """The names of the values of one of `DatasetConfig.attributes`, in the order of their ids."""
        return []

    def attribute_labels(self, attribute: str, source: str) -> tuple[int, ...]:
        """The ids of an image's values of an attribute: one or more."""
        return ()


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

    def attributes(self) -> Mapping[str, Sequence[str]]:
        """What the images are labelled with beside their classes: name -> zero-shot prompts of its values.

        A name has lower-case letters, digits and `_`, since tables have columns that end in it.
        """
        return {}

    def class_attribute(self) -> str | None:
        """The name of the attribute whose values are the classes, if the dataset has a name for it."""
        return None

    def location(self) -> dict[str, str]:
        """Where the images lie, for the manifest; empty for images that are generated or in a package."""
        return {}

    def reading(self) -> Reading:
        """How pixels of image files are read, for images from outside that are to be read alike."""
        return Reading()

    def file_of(self, source: str) -> Path | None:
        """The file of an image, given by the `source` of its record; None if it has no file of its own."""
        return None

    def thumbnail_side(self, n_images: int) -> int:
        """The longest side of the thumbnails of so many images, in pixels; 0 if there are to be none.

        Images that are rendered need none, since they can be rendered when they are looked at.
        """
        return 0

    def expected_images(self) -> int | None:
        """The number of images, if the config alone says it; None otherwise. Only predictions use it."""
        return None

    def expected_splits(self) -> Mapping[str, int] | None:
        """The number of images of each split, if the config alone says it; None otherwise."""
        return None

    def source(self) -> Source:
        """The fingerprint, location, splits and classes of the images. Raises UserError if they are not there."""
        dataset = self.build()
        fingerprint, splits = dataset.fingerprint(), self.expected_splits()
        if splits is None:
            splits = Counter(record.split for record in dataset.records())
        return Source(
            fingerprint,
            self.location(),
            sum(splits.values()),
            splits,
            dataset.class_names(),
            tuple(dataset.remarks()),
        )


class FilesConfig(DatasetConfig):
    """Base of the configs of datasets of image files."""

    thumbnails: Annotated[Annotated[int, Field(ge=0, le=512)] | None, HashedUnless(None)] = None
    """Longest side, in pixels, of small pictures that the index keeps of all images, for explorers; 0 keeps none. If
    not given, 96 for fewer than 100,000 images, and none for more. Nothing that is made from the images depends on
    it."""

    def thumbnail_side(self, n_images: int) -> int:
        if self.thumbnails is not None:
            return self.thumbnails
        return DEFAULT_SIDE if n_images < MOST_WITH_THUMBNAILS else 0
