"""Reads the layouts of ImageNet and its variants: a folder per class, whose name is a WordNet id.

`imagenet/images/train/n01440764/*.JPEG` and `imagenet/images/val/n01440764/*.JPEG`, where `val` becomes the split
`test`. Variants have test images alone. The folders of ImageNetV2 are the numbers of the classes, 0 to 999.
`classnames.txt` has lines such as `n01440764 tench`.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from patchsae.pipeline.core.open_clip_data import imagenet_class_names
from patchsae.pipeline.images.coop.checks import Listing
from patchsae.pipeline.images.coop.facts import FACTS, Facts
from patchsae.pipeline.images.coop.text_files import read_lines
from patchsae.pipeline.images.dataset import Record
from patchsae.pipeline.images.files import is_image, reason
from patchsae.storage.errors import UserError

NAMES = "classnames.txt"
FOLDERS = {"train": "train", "test": "val"}
_LINE = re.compile(r"(n\d{8})\s+(\S.*)")
_REMARK = (
    "class names are open_clip's, since {} is not there; some differ from those of CoOp, with which published "
    "figures were made"
)


def read(root: Path, facts: Facts) -> Listing:
    """The images in the class folders. Raises UserError if a folder is missing or of an unknown class."""
    names, remarks = class_names(root, facts)
    images = f"{facts.folder}/{facts.images}"
    folders = {
        split: images if facts.layout == "imagenet_variant" else f"{images}/{FOLDERS[split]}"
        for split in facts.splits
    }
    found = {split: _folders(root / folder) for split, folder in folders.items()}
    everything = sorted(set().union(*found.values()))
    numbered = bool(everything) and all(name.isdecimal() for name in everything)
    ids, label = sorted(names), {name: number for number, name in enumerate(everything)}
    records = []
    for split, folder in folders.items():
        for name in found[split]:
            number = int(name) if numbered else label[name]
            wordnet_id = name if not numbered else ids[number] if number < len(ids) else ""
            if wordnet_id not in names:
                raise UserError(
                    f"{root / folder / name}: is the folder of no class in {NAMES}; take it away."
                )
            for image in _images(root / folder / name):
                records.append(Record(f"{folder}/{name}/{image}", number, names[wordnet_id], split))
    return Listing(str(root / images), records, remarks)


def class_names(root: Path, facts: Facts) -> tuple[dict[str, str], tuple[str, ...]]:
    """WordNet id -> name of each class, and what a user should know of these names.

    They are read from the data set's `classnames.txt`, or else that of ImageNet beside it.
    """
    own, shared = (root / folder / NAMES for folder in (facts.folder, FACTS["imagenet"].folder))
    path = own if own.is_file() else shared
    if not path.is_file():
        ids = _wordnet_ids()
        return dict(zip(ids, imagenet_class_names(), strict=True)), (_REMARK.format(own),)
    names = {}
    for line in read_lines(path):
        found = _LINE.fullmatch(line)
        if found is None:
            raise UserError(
                f"{path}: the line `{line[:80]}` is not like `n01440764 tench`; get the file again."
            )
        names[found[1]] = found[2]
    return names, ()


def _wordnet_ids() -> list[str]:
    """The ids of ImageNet's 1,000 classes in their order, from timm, which open_clip needs; it is not imported."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    return read_lines(folder / "data" / "_info" / "imagenet_synsets.txt")


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones and files are left out."""
    try:
        with os.scandir(folder) as entries:
            there = list(entries)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise UserError(f"{folder}: no such folder; `patchsae data` says what belongs there.") from None
        raise UserError(f"{folder}: cannot be listed ({reason(error)}).") from None
    found = sorted(entry.name for entry in there if entry.is_dir() and not entry.name.startswith("."))
    if not found and any(is_image(entry.name) for entry in there):
        raise UserError(f"{folder}: has images but no class folders; sort the images into folders by class.")
    return found


def _images(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if is_image(e.name) and not e.name.startswith("."))
