"""What a layout's module reads, and its comparison with what is known of the data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from patchsae.pipeline.core.text import count
from patchsae.pipeline.images.coop.facts import Facts
from patchsae.pipeline.images.dataset import Record
from patchsae.storage.errors import UserError


@dataclass(frozen=True)
class Listing:
    """The images of a data set. `where` names the file or folder that lists them, for error messages."""

    where: str
    records: Sequence[Record]
    remarks: tuple[str, ...] = ()

    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their ids, which must be checked."""
        name = {record.label: record.class_name for record in self.records}
        return [name[label] for label in sorted(name)]


def checked(listing: Listing, facts: Facts) -> Listing:
    """The listing with its classes named as prompts need them.

    Raises UserError if it has other classes, or other numbers of images, than the data set is known to have.
    """
    name = {given: readable(given, facts) for given in {one.class_name for one in listing.records}}
    renamed = any(given != read for given, read in name.items())
    records = (
        [replace(one, class_name=name[one.class_name]) for one in listing.records]
        if renamed
        else listing.records
    )
    _check_classes(listing.where, records, facts)
    _check_images(listing.where, records, facts)
    return replace(listing, records=records)


def readable(name: str, facts: Facts) -> str:
    """The name of a class as prompts have it: renamed as CoOp does, with spaces in place of `_`."""
    return facts.renamed.get(name, name).replace("_", " ").strip()


def below(folder: str, path: str, where: str) -> str:
    """`folder/path` with slashes. Raises UserError if `path` leads out of the folder."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\0" in path:
        raise UserError(
            f"{where}: names the image {path!r}, which is not below {folder}; get the file again."
        )
    return (PurePosixPath(folder) / parts).as_posix()


def _check_classes(where: str, records: Sequence[Record], facts: Facts) -> None:
    names: dict[int, str] = {}
    for record in records:
        if names.setdefault(record.label, record.class_name) != record.class_name:
            raise UserError(
                f"{where}: class {record.label} is called `{names[record.label]}` and `{record.class_name}`; get the "
                "file again."
            )
    if len(names) != facts.n_classes:
        raise UserError(
            f"{where}: has {count(len(names), 'class', 'classes')}, and {facts.title} has {facts.n_classes:,}; get it "
            "again, or use the kind image_folder for a data set of your own."
        )
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{where}: its classes are not numbered from 0 to {len(names) - 1}; get it again.")


def _check_images(where: str, records: Sequence[Record], facts: Facts) -> None:
    if len({record.source for record in records}) < len(records):
        [(source, n)] = Counter(record.source for record in records).most_common(1)
        raise UserError(f"{where}: names the image {source} {n} times; get the file again.")
    n_images = Counter(record.split for record in records)
    present = {(record.split, record.label) for record in records}
    names = {record.label: record.class_name for record in records}
    for split, expected in facts.splits.items():
        absent = [name for label, name in sorted(names.items()) if (split, label) not in present]
        if absent:
            raise UserError(
                f"{where}: {count(len(absent), 'class has', 'classes have')} no image in the split `{split}`, such as "
                f"`{absent[0]}`; get it again."
            )
        if n_images[split] != expected:
            raise UserError(
                f"{where}: has {count(n_images[split], 'image')} in the split `{split}`, and {facts.title} has "
                f"{expected:,}; get it again, or use the kind image_folder for a part of it."
            )
