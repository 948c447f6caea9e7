"""Dataset `image_folder`: image files in class folders, or in a CSV file that lists them."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from PIL import Image
from pydantic import Field

from patchsae.pipeline.core.config import Location, OptionalLocation, Unhashed
from patchsae.pipeline.core.open_clip_data import imagenet_class_names
from patchsae.pipeline.images.dataset import Dataset, DatasetConfig, Record
from patchsae.pipeline.images.files import SUFFIXES, decode_rgb, image_files, read_file
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_bytes, digest_json

_COLUMNS = ("path", "label", "class_name", "split")
_LABEL = re.compile(r"[0-9]{1,9}")


class ImageFolderConfig(DatasetConfig):
    """Images below the folder `root`, in one of three layouts.

    Without `splits` and `csv`, images lie in `root/CLASS/...`; a share `test_fraction` of each class becomes
    the split `test`, the rest `train`. With `splits: {train: a, test: b}` they lie in `root/a/CLASS/...` and
    `root/b/CLASS/...`. With `csv: FILE` the file has the columns path (relative to `root`), label, class_name
    and split.
    """

    kind: Literal["image_folder"] = "image_folder"
    root: Location
    splits: dict[str, str] | None = None
    csv: OptionalLocation = None
    test_fraction: float = Field(0.2, ge=0, lt=1)
    """Share of the images of each class that become the split `test`, without `splits` and `csv`. Every class
    keeps at least one training image."""
    class_names: Literal["imagenet"] | tuple[str, ...] | None = None
    """The names of the classes, in the sorted order of their folders: a list, or `imagenet` for the 1,000
    names of ImageNet, whose folders are WordNet ids. If not given, the names of the folders."""
    prompts: Annotated[tuple[str, ...], Unhashed("hashed by the stage that uses them")] = (
        "a photo of a {}.",
    )
    """Zero-shot prompts, with `{}` in place of the class name."""
    n_images: Annotated[int | None, Unhashed("a check, and a size for predictions")] = None
    """The number of images, if it is known. It predicts sizes, and finding another number is an error."""

    def build(self) -> ImageFolder:
        return ImageFolder(self)

    def templates(self) -> list[str]:
        return list(self.prompts)

    def location(self) -> dict[str, str]:
        folder = {"root": str(Path(self.root).expanduser().absolute())}
        return folder if self.csv is None else {**folder, "csv": str(Path(self.csv).expanduser().absolute())}

    def expected_images(self) -> int | None:
        return self.n_images


class ImageFolder(Dataset):
    """Implements `Dataset` for files. The folders are listed once, when the paths are first needed."""

    def __init__(self, config: ImageFolderConfig) -> None:
        self.config = config
        self.root = Path(config.root).expanduser()

    @cached_property
    def _listed(self) -> tuple[list[str], list[Record]]:
        if not self.root.is_dir():
            raise UserError(
                f"dataset root {self.root}: no such folder; give the folder that holds the images."
            )
        names, records = self._from_csv() if self.config.csv else self._from_folders()
        if self.config.class_names is not None:
            names, records = self._renamed(names, records)
        if not records:
            raise UserError(f"dataset root {self.root}: no images found ({', '.join(sorted(SUFFIXES))}).")
        expected = self.config.n_images
        if expected is not None and len(records) != expected:
            raise UserError(
                f"dataset root {self.root}: n_images is {expected:,}, but there are {len(records):,}."
            )
        return names, records

    def _renamed(self, folders: list[str], records: list[Record]) -> tuple[list[str], list[Record]]:
        names = list(self.config.class_names or ())
        if self.config.class_names == "imagenet":
            names = imagenet_class_names()
        if len(names) != len(folders):
            raise UserError(
                f"class_names: {len(names):,} names for the {len(folders):,} classes in {self.root}; give one per class."
            )
        return names, [replace(record, class_name=names[record.label]) for record in records]

    def class_names(self) -> list[str]:
        return self._listed[0]

    def records(self) -> Sequence[Record]:
        return self._listed[1]

    def _from_folders(self) -> tuple[list[str], list[Record]]:
        bases = self.config.splits or {"": "."}
        found: dict[str, dict[str, list[str]]] = {}
        for split, base in bases.items():
            folder = self.root / base
            if not folder.is_dir():
                raise UserError(f"splits.{split}: {folder} is no folder; name a subfolder of {self.root}.")
            for class_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
                sources = sorted(path.relative_to(self.root).as_posix() for path in image_files(class_folder))
                if not sources:
                    raise UserError(
                        f"class folder {class_folder}: has no images; add some or remove the folder."
                    )
                for source in sources:
                    if not _is_text(source):
                        raise UserError(
                            f"dataset root {self.root}: the name {source!r} is not UTF-8, which a table "
                            "needs; rename the file or folder."
                        )
                found.setdefault(class_folder.name, {})[split] = sources
        names = sorted(found)
        records = []
        for label, name in enumerate(names):
            for split, sources in found[name].items():
                for source, chosen in zip(sources, self._splits_of(split, sources), strict=True):
                    records.append(Record(source, label, name, chosen))
        return names, sorted(
            records, key=lambda record: (record.split != "train", record.split, record.source)
        )

    def _splits_of(self, split: str, sources: list[str]) -> list[str]:
        """The split of each source: `split`, or if that is empty, `test` for a fixed pseudo-random share."""
        if split:
            return [split] * len(sources)
        n_test = min(len(sources) - 1, math.floor(len(sources) * self.config.test_fraction + 0.5))
        test = set(sorted(sources, key=lambda source: digest_bytes(f"split:{source}".encode()))[:n_test])
        return ["test" if source in test else "train" for source in sources]

    def _from_csv(self) -> tuple[list[str], list[Record]]:
        path = Path(str(self.config.csv)).expanduser()
        if not path.is_file():
            raise UserError(f"csv {path}: no such file.")
        try:
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                columns, rows = reader.fieldnames or [], list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"csv {path}: cannot be read as CSV in UTF-8 ({error}); save it as that."
            ) from None
        missing = [column for column in _COLUMNS if column not in columns]
        if missing:
            raise UserError(f"csv {path}: has no column `{missing[0]}`; it needs {', '.join(_COLUMNS)}.")
        names: dict[int, str] = {}
        records = []
        for line, row in enumerate(rows, start=2):
            absent = [column for column in _COLUMNS if row[column] is None]
            if absent:
                raise UserError(f"csv {path}, line {line}: has no `{absent[0]}`; the line is too short.")
            if "\0" in row["path"]:
                raise UserError(
                    f"csv {path}, line {line}: path {row['path']!r} holds a NUL; no file has such a name."
                )
            if not _LABEL.fullmatch(row["label"]):
                raise UserError(
                    f"csv {path}, line {line}: label `{row['label']}` is no class id (0, 1, 2, ...)."
                )
            label = int(row["label"])
            if names.setdefault(label, row["class_name"]) != row["class_name"]:
                raise UserError(
                    f"csv {path}, line {line}: label {label} is `{row['class_name']}` here and `{names[label]}` before."
                )
            records.append(Record(row["path"], label, row["class_name"], row["split"]))
        unused = sorted(set(range(len(names))) - names.keys())
        if unused:
            raise UserError(f"csv {path}: labels must be 0 to {len(names) - 1}, but {unused[0]} has no row.")
        if len({record.source for record in records}) < len(records):
            raise UserError(f"csv {path}: a path is listed twice; list each image once.")
        return [names[label] for label in range(len(names))], records

    def read(self, record: Record) -> bytes:
        return read_file(self.root / record.source)

    def decode(self, data: bytes) -> Image.Image:
        return decode_rgb(data)

    def fingerprint(self) -> str:
        listing = []
        for record in self.records():
            try:
                stat = (self.root / record.source).stat()
            except OSError:
                listing.append([record.source, record.label, record.split, None, None])
            else:
                listing.append([record.source, record.label, record.split, stat.st_size, stat.st_mtime_ns])
        return digest_json([self.class_names(), listing])


def _is_text(name: str) -> bool:
    """Whether a file's name is UTF-8. Python reads other bytes of a name as surrogates, which are no text."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
