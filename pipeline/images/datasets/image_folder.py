"""Dataset `image_folder`: image files in class folders, or in a CSV file that lists them."""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from PIL import Image
from pydantic import Field, field_validator

from patchsae.pipeline.core.config import HashedUnless, Location, OptionalLocation, Unhashed
from patchsae.pipeline.core.open_clip_data import imagenet_class_names
from patchsae.pipeline.core.text import count
from patchsae.pipeline.images import pixels
from patchsae.pipeline.images.csv_list import hint, read_list
from patchsae.pipeline.images.dataset import Dataset, FilesConfig, Record
from patchsae.pipeline.images.files import SUFFIXES, LeftOut, Walk, names, read_file
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_bytes, digest_json

_COLOUR = re.compile(r"white|black|none|#[0-9a-f]{6}")
_MISSING_SHOWN = 5


class ImageFolderConfig(FilesConfig):
    """Images below the folder `root`, in one of three layouts.

    Without `splits` and `csv`, images lie in `root/CLASS/...`; a share `test_fraction` of each class becomes
    the split `test`, the rest `train`. With `splits: {train: a, test: b}` they lie in `root/a/CLASS/...` and
    `root/b/CLASS/...`. With `csv: FILE` the file has the columns path (relative to `root`), class_name or label
    (a number) or both, and split. `docs/images.md` says which files count and how they are read.
    """

    kind: Literal["image_folder"] = "image_folder"
    root: Location
    """The folder of the images. As any path in a file, it is relative to the folder of that file."""
    splits: dict[str, str] | None = None
    """Name of a split -> its folder in `root`."""
    csv: OptionalLocation = None
    """A CSV file that lists the images."""
    test_fraction: float = Field(0.2, ge=0, lt=1)
    """Share of the images of each class that become the split `test`, without `splits` and without a column
    `split` in `csv`. Every class keeps at least one training image."""
    orientation: Annotated[Literal["exif", "ignore"], HashedUnless("exif")] = "exif"
    """`exif` turns images upright as their EXIF tag says, as every viewer shows them. `ignore` takes the pixels
    as they are stored, as versions up to 0.1 did; a TIFF is turned all the same."""
    background: Annotated[str, HashedUnless("white")] = "white"
    """What transparent pixels are put on: `white`, `black` or `#rrggbb`. `none` drops the alpha channel, as
    versions up to 0.1 did."""
    hidden: Annotated[bool, HashedUnless(False)] = False
    """Whether files and folders whose name begins with a dot count. Without `csv`."""
    follow_links: Annotated[bool, HashedUnless(False)] = False
    """Whether folders that are symbolic links count. Files that are links always do. Without `csv`."""
    class_names: Literal["imagenet"] | tuple[str, ...] | None = None
    """The names of the classes, in the sorted order of their folders: a list, or `imagenet` for the 1,000
    names of ImageNet, whose folders are WordNet ids. If not given, the names of the folders."""
    prompts: Annotated[tuple[str, ...], Unhashed("hashed by the stage that uses them")] = (
        "a photo of a {}.",
    )
    """Zero-shot prompts, with `{}` in place of the class name."""
    n_images: Annotated[int | None, Unhashed("a check, and a size for predictions")] = None
    """The number of images, if it is known. It predicts sizes, and finding another number is an error."""

    @field_validator("background")
    @classmethod
    def _is_a_colour(cls, background: str) -> str:
        colour = {"#ffffff": "white", "#000000": "black"}.get(background.lower(), background.lower())
        if not _COLOUR.fullmatch(colour):
            raise ValueError("is no background; choose white, black, none, or a colour such as '#8090a0'")
        return colour

    def build(self) -> ImageFolder:
        return ImageFolder(self)

    def reading(self) -> pixels.Reading:
        return pixels.Reading(self.orientation, self.background)

    def templates(self) -> list[str]:
        return list(self.prompts)

    def location(self) -> dict[str, str]:
        folder = {"root": str(Path(self.root).expanduser().absolute())}
        return folder if self.csv is None else {**folder, "csv": str(Path(self.csv).expanduser().absolute())}

    def file_of(self, source: str) -> Path:
        return Path(self.root).expanduser() / source

    def expected_images(self) -> int | None:
        return self.n_images


class ImageFolder(Dataset):
    """Implements `Dataset` for files. The folders are listed once, when the paths are first needed."""

    def __init__(self, config: ImageFolderConfig) -> None:
        self.config = config
        self.root = Path(config.root).expanduser()
        self.reading = config.reading()

    @cached_property
    def _listed(self) -> tuple[list[str], list[Record], tuple[str, ...]]:
        if not self.root.is_dir():
            raise UserError(
                f"dataset root {self.root}: no such folder; give the folder that holds the images."
            )
        left_out = LeftOut()
        class_names, records = self._from_csv() if self.config.csv else self._from_folders(left_out)
        remarks = tuple(left_out.sentences())
        if not records:
            found = f" ({'; '.join(remarks)})" if remarks else ""
            raise UserError(
                f"dataset root {self.root}: no images found in class folders, {self.root}/CLASS/*.jpg{found}; the "
                f"formats are {', '.join(sorted(SUFFIXES))}."
            )
        if self.config.class_names is not None:
            class_names, records = self._renamed(class_names, records)
        expected = self.config.n_images
        if expected is not None and len(records) != expected:
            raise UserError(
                f"dataset root {self.root}: n_images is {expected:,}, but there are {len(records):,}."
            )
        return class_names, records, remarks

    def _renamed(self, folders: list[str], records: list[Record]) -> tuple[list[str], list[Record]]:
        class_names = list(self.config.class_names or ())
        if self.config.class_names == "imagenet":
            class_names = imagenet_class_names()
        if len(class_names) != len(folders):
            raise UserError(
                f"class_names: {len(class_names):,} names for the {len(folders):,} classes in {self.root}; give one per class."
            )
        return class_names, [replace(record, class_name=class_names[record.label]) for record in records]

    def class_names(self) -> list[str]:
        return self._listed[0]

    def records(self) -> Sequence[Record]:
        return self._listed[1]

    def remarks(self) -> Sequence[str]:
        return self._listed[2]

    def _from_folders(self, left_out: LeftOut) -> tuple[list[str], list[Record]]:
        """The classes and images of the folders. A folder without an image is a class only if `class_names` names it."""
        walk = Walk(self.config.hidden, self.config.follow_links)
        found: dict[str, dict[str, list[str]]] = defaultdict(dict)
        for split, base in (self.config.splits or {"": "."}).items():
            folder = self.root / base
            if not folder.is_dir():
                raise UserError(f"splits.{split}: {folder} is no folder; name a subfolder of {self.root}.")
            if not folder.is_relative_to(self.root):
                raise UserError(f"splits.{split}: {folder} is not below {self.root}; name a subfolder of it.")
            for class_folder in walk.folders(folder, self.root, left_out):
                sources = walk.images(class_folder, self.root, left_out)
                for source in sources:
                    if not _is_text(source):
                        raise UserError(
                            f"dataset root {self.root}: the name {source!r} is not UTF-8, which a table "
                            "needs; rename the file or folder."
                        )
                if not sources:
                    left_out.empty.append(class_folder.relative_to(self.root).as_posix())
                if sources or self.config.class_names is not None:
                    found[class_folder.name][split] = sources
        class_names = sorted(found)
        records = []
        for label, name in enumerate(class_names):
            for split, sources in found[name].items():
                splits = [split] * len(sources) if split else self._splits_of(sources)
                for source, chosen in zip(sources, splits, strict=True):
                    records.append(Record(source, label, name, chosen))
        return class_names, _sorted(records)

    def _splits_of(self, sources: list[str]) -> list[str]:
        """The split of each source of a class: `test` for a fixed pseudo-random share, or `train`."""
        n_test = min(len(sources) - 1, math.floor(len(sources) * self.config.test_fraction + 0.5))
        test = set(sorted(sources, key=lambda source: digest_bytes(f"split:{source}".encode()))[:n_test])
        return ["test" if source in test else "train" for source in sources]

    def _from_csv(self) -> tuple[list[str], list[Record]]:
        class_names, listed = read_list(Path(str(self.config.csv)).expanduser())
        if listed[0].split:
            return class_names, [Record(row.source, row.label, row.class_name, row.split) for row in listed]
        of_class: dict[int, list[str]] = defaultdict(list)
        for row in listed:
            of_class[row.label].append(row.source)
        split = {
            source: chosen
            for sources in of_class.values()
            for source, chosen in zip(sources, self._splits_of(sources), strict=True)
        }
        return class_names, _sorted(
            [Record(row.source, row.label, row.class_name, split[row.source]) for row in listed]
        )

    def read(self, record: Record) -> bytes:
        return read_file(self.root / record.source)

    def decode(self, data: bytes) -> Image.Image:
        return pixels.decode_rgb(data, self.reading)

    def inspect(self, data: bytes) -> pixels.Facts:
        return pixels.inspect(data, self.reading)

    def inspect_small(self, data: bytes, side: int) -> tuple[pixels.Facts, pixels.Thumbnail]:
        return pixels.inspect_small(data, self.reading, side)

    def fingerprint(self) -> str:
        """A digest of the folder's place, and of every image's path, class, split, size and modification time.

        Two folders may hold images of the same names, sizes and times with other pixels, so the place counts.
        Raises UserError if a file that the CSV lists is not there.
        """
        listing, missing = [], []
        for record in self.records():
            try:
                stat = (self.root / record.source).stat()
            except OSError:
                missing.append(record.source)
            else:
                listing.append([record.source, record.label, record.split, stat.st_size, stat.st_mtime_ns])
        if missing and self.config.csv:
            n = count(len(missing), "file is", "files are")
            raise UserError(
                f"csv {self.config.csv}: {n} not below {self.root}: {names(sorted(missing), _MISSING_SHOWN)} (of "
                f"{len(self.records()):,} that it lists){hint(missing, self.root)}."
            )
        return digest_json([os.path.realpath(self.root), self.class_names(), listing, missing])


def _sorted(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record.split != "train", record.split, record.source))


def _is_text(name: str) -> bool:
    """Whether a file's name is UTF-8. Python reads other bytes of a name as surrogates, which are no text."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
