"""Dataset `coop`: one of the data sets of CoOp's benchmark, in the folder and with the splits that CoOp uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from patchsae.pipeline.core.config import Location
from patchsae.pipeline.images.coop.dataset import Coop
from patchsae.pipeline.images.coop.facts import FACTS, Name, Split
from patchsae.pipeline.images.dataset import FilesConfig


class CoopConfig(FilesConfig):
    """A data set of CoOp's benchmark, or a variant of ImageNet, with CoOp's splits, class names and prompt.

    `patchsae data` says which of them are there, where to get the others, and where to put them. A data set with
    other numbers of classes or images than it should have is refused.
    """

    kind: Literal["coop"] = "coop"
    name: Name
    """Which data set."""
    root: Location
    """The folder that holds all data sets, called $DATA by CoOp: that of `oxford_pets/`, `food-101/`, ..."""

    splits: Annotated[tuple[Split, ...], Field(min_length=1)] | None = None
    """Only images of these splits are used, and others need not be there; all splits if not given."""
    train_per_class: Annotated[int, Field(ge=1)] | None = None
    """At most this many images of each class are used of the split `train`, chosen by a digest of their names; all if
    not given. The activations of ImageNet's 1.3 million images would take 390 GB."""

    @field_validator("splits")
    @classmethod
    def _each_once(cls, splits: tuple[Split, ...] | None) -> tuple[Split, ...] | None:
        return splits and tuple(split for split in get_args(Split) if split in splits)

    @model_validator(mode="after")
    def _has_these_splits(self) -> Self:
        known = FACTS[self.name].splits
        for split in self.splits or ():
            if split not in known:
                raise ValueError(
                    f"`splits` names `{split}`, and {self.name} has {', '.join(known)}; leave it out"
                )
        return self

    def build(self) -> Coop:
        root = Path(self.root).expanduser()
        return Coop(self.name, root, self.reading(), self.splits, self.train_per_class)

    def templates(self) -> list[str]:
        return [FACTS[self.name].prompt]

    def location(self) -> dict[str, str]:
        return {"root": str(Path(self.root).expanduser().absolute())}

    def file_of(self, source: str) -> Path:
        return Path(self.root).expanduser() / source

    def expected_images(self) -> int | None:
        splits = self.expected_splits()
        return None if splits is None else sum(splits.values())

    def expected_splits(self) -> Mapping[str, int] | None:
        known = {
            split: n for split, n in FACTS[self.name].splits.items() if split in (self.splits or (split,))
        }
        return None if "train" in known and self.train_per_class is not None else known
