"""A data set of CoOp's benchmark as a `Dataset`."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from PIL import Image

from patchsae.pipeline.core.text import count
from patchsae.pipeline.images import pixels
from patchsae.pipeline.images.coop import aircraft, imagenet, split_file
from patchsae.pipeline.images.coop.checks import Listing, checked
from patchsae.pipeline.images.coop.facts import FACTS, Facts, Layout, Name, Split
from patchsae.pipeline.images.dataset import Dataset, Record
from patchsae.pipeline.images.files import names, read_file
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_bytes

_READ: Mapping[Layout, Callable[[Path, Facts], Listing]] = {
    "split_file": split_file.read,
    "aircraft": aircraft.read,
    "imagenet": imagenet.read,
    "imagenet_variant": imagenet.read,
}
_MISSING_SHOWN = 5


class Coop(Dataset):
    """Implements `Dataset`. The lists of images are read once, when they are first needed."""

    def __init__(
        self,
        name: Name,
        root: Path,
        reading: pixels.Reading = pixels.Reading(),  # noqa: B008 (frozen)
        splits: Sequence[Split] | None = None,
        train_per_class: int | None = None,
    ) -> None:
        """`splits` and `train_per_class` leave images out, as the fields of the kind `coop` say."""
        facts = FACTS[name]
        chosen = {split: n for split, n in facts.splits.items() if splits is None or split in splits}
        self.name = name
        self.facts = replace(facts, splits=chosen)
        self.root = root
        self.reading = reading
        self._train_per_class = train_per_class

    @cached_property
    def _listing(self) -> Listing:
        folder = self.root / self.facts.folder
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder, and {self.facts.title} belongs there; `patchsae data {self.name} --root "
                f"{shlex.quote(str(self.root))}` says where to get it."
            )
        return checked(_READ[self.facts.layout](self.root, self.facts), self.facts)

    @cached_property
    def _records(self) -> Sequence[Record]:
        records = self._listing.records
        return records if self._train_per_class is None else _thinned(records, self._train_per_class)

    def class_names(self) -> list[str]:
        return self._listing.class_names()

    def records(self) -> Sequence[Record]:
        return self._records

    def remarks(self) -> Sequence[str]:
        return self._listing.remarks

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

        Raises UserError if an image that the data set names is not there.
        """
        listing, root = self._listing, str(self.root)
        digest, missing = hashlib.sha256(os.path.realpath(root).encode(errors="surrogateescape")), []
        for record in self._records:
            try:
                # ImageNet has 1.3 million images, for which joining paths by pathlib takes longer than this call.
                found = os.stat(f"{root}/{record.source}")  # noqa: PTH116
            except OSError:
                missing.append(record.source)
            else:
                known = (record.source, record.label, record.class_name, record.split)
                digest.update(repr((known, found.st_size, found.st_mtime_ns)).encode())
        if missing:
            n = count(len(missing), "image that is not there", "images that are not there")
            raise UserError(
                f"{listing.where}: names {n}: {names(sorted(missing), _MISSING_SHOWN)} (of {len(self._records):,}, below "
                f"{self.root}); get them again."
            )
        return digest.hexdigest()


def _thinned(records: Sequence[Record], per_class: int) -> list[Record]:
    """The records without those of the split `train` that come after the first `per_class` of their class, in the
    order of a digest of their names."""
    of_class: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.split == "train":
            of_class[record.label].append(record)
    kept: set[str] = set()
    for several in of_class.values():
        several.sort(key=lambda record: digest_bytes(f"train_per_class:{record.source}".encode()))
        kept.update(record.source for record in several[:per_class])
    return [record for record in records if record.split != "train" or record.source in kept]
