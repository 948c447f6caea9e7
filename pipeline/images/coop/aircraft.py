"""Reads the layout of FGVCAircraft: the makers' own text files.

`variants.txt` has a class per line. `images_variant_train.txt` has lines such as `1025794 707-320`: the image
`images/1025794.jpg` and its class. `images_variant_val.txt` and `images_variant_test.txt` are alike.
"""

from __future__ import annotations

from pathlib import Path

from patchsae.pipeline.images.coop.checks import Listing, below
from patchsae.pipeline.images.coop.facts import Facts
from patchsae.pipeline.images.coop.text_files import read_lines
from patchsae.pipeline.images.dataset import Record
from patchsae.storage.errors import UserError

_CLASSES = "variants.txt"


def files(facts: Facts) -> list[str]:
    """The names of the text files."""
    return [_CLASSES, *(f"images_variant_{split}.txt" for split in facts.splits)]


def read(root: Path, facts: Facts) -> Listing:
    """The images that the text files name. Raises UserError if one is missing or names an unknown class."""
    folder = root / facts.folder
    label = {name: number for number, name in enumerate(read_lines(folder / _CLASSES))}
    records = []
    for split in facts.splits:
        path = folder / f"images_variant_{split}.txt"
        for line in read_lines(path):
            image, _, name = line.partition(" ")
            name = name.strip()
            if name not in label:
                raise UserError(
                    f"{path}: the line `{line[:80]}` names no class of {_CLASSES}; get both again."
                )
            source = below(f"{facts.folder}/{facts.images}", f"{image}.jpg", str(path))
            records.append(Record(source, label[name], name, split))
    return Listing(str(folder), records)
