"""Dataset `coop`: one of the data sets of CoOp's benchmark, in the folder and with the splits that CoOp uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from patchsae.pipeline.core.config import Location
from patchsae.pipeline.images.coop.dataset import Coop
from patchsae.pipeline.images.coop.facts import FACTS, Name
from patchsae.pipeline.images.dataset import DatasetConfig


class CoopConfig(DatasetConfig):
    """A data set of CoOp's benchmark, or a variant of ImageNet, with CoOp's splits, class names and prompt.

    `patchsae data` says which of them are there, where to get the others, and where to put them. A data set with
    other numbers of classes or images than it should have is refused.
    """

    kind: Literal["coop"] = "coop"
    name: Name
    """Which data set."""
    root: Location
    """The folder that holds all data sets, called $DATA by CoOp: that of `oxford_pets/`, `food-101/`, ..."""

    def build(self) -> Coop:
        return Coop(self.name, Path(self.root).expanduser(), self.reading())

    def templates(self) -> list[str]:
        return [FACTS[self.name].prompt]

    def location(self) -> dict[str, str]:
        return {"root": str(Path(self.root).expanduser().absolute())}

    def file_of(self, source: str) -> Path:
        return Path(self.root).expanduser() / source

    def expected_images(self) -> int:
        return FACTS[self.name].n_images

    def expected_splits(self) -> Mapping[str, int]:
        return FACTS[self.name].splits
