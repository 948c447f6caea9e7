"""Reads the layout of ten of the data sets: a JSON file by CoOp's authors lists the images of three splits.

`{"train": [["path/of/image.jpg", 0, "name of class 0"], ...], "val": [...], "test": [...]}`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchsae.pipeline.images.coop.checks import Listing, below
from patchsae.pipeline.images.coop.facts import Facts
from patchsae.pipeline.images.coop.text_files import read_bytes
from patchsae.pipeline.images.dataset import Record
from patchsae.storage.errors import UserError
from patchsae.storage.keys import parse_json


def read(root: Path, facts: Facts) -> Listing:
    """The images that the split file names. Raises UserError if it is missing or no such file."""
    path = root / facts.folder / facts.split_file
    try:
        content = parse_json(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); get the file again.") from None
    images = f"{facts.folder}/{facts.images}".rstrip("/")
    records = []
    for split in facts.splits:
        rows = content.get(split) if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise UserError(f"{path}: has no list `{split}` of images; get the file again.")
        for number, row in enumerate(rows):
            source, label, name = _row(row, f"{path}: entry {number} of `{split}`")
            records.append(Record(below(images, source, str(path)), label, name, split))
    return Listing(str(path), records)


def _row(row: Any, where: str) -> tuple[str, int, str]:
    match row:
        case [str(source), int() | str() as label, str(name)] if str(label).isdecimal():
            return source, int(label), name
    raise UserError(f"{where} is not [path, number of the class, name of the class]; get the file again.")
