"""What of CoOp's data sets is in a folder, for `patchsae data`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from patchsae.pipeline.images.coop import aircraft, imagenet
from patchsae.pipeline.images.coop.dataset import Coop
from patchsae.pipeline.images.coop.facts import FACTS, Facts, Name
from patchsae.storage.errors import UserError


@dataclass(frozen=True)
class Found:
    """A data set in the folder `root`. `problem` says what is wrong, in a sentence, unless the state is `found`."""

    name: Name
    root: Path
    state: Literal["found", "incomplete", "missing"]
    problem: str = ""
    remarks: tuple[str, ...] = ()
    """What a user should know of a data set that is found."""

    @property
    def facts(self) -> Facts:
        return FACTS[self.name]

    def missing(self) -> list[str]:
        """What of `belongs` is not there."""
        return [one for one in belongs(self.facts) if not (self.root / self.facts.folder / one).exists()]


def look(name: Name, root: Path) -> Found:
    """Reads the lists of images, and looks whether every image is there. It opens no image."""
    if not (root / FACTS[name].folder).is_dir():
        return Found(name, root, "missing", f"{root / FACTS[name].folder}: no such folder.")
    dataset = Coop(name, root)
    try:
        dataset.fingerprint()
    except UserError as error:
        return Found(name, root, "incomplete", str(error))
    return Found(name, root, "found", remarks=tuple(dataset.remarks()))


def belongs(facts: Facts) -> list[str]:
    """The files and folders that a data set's folder must have, folders with a slash at their end."""
    images = [f"{facts.images}/"] if facts.images else []
    match facts.layout:
        case "split_file":
            return [*images, facts.split_file]
        case "aircraft":
            return [*images, *aircraft.files(facts)]
        case "imagenet":
            return [*(f"{images[0]}{folder}/" for folder in imagenet.FOLDERS.values()), imagenet.NAMES]
        case "imagenet_variant":
            return [*images, imagenet.NAMES]
