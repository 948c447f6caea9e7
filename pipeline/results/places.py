"""`Place`: an artifact in the record of an experiment, which says of which dataset and backbone it is.

It loads no model and does not import torch, so that pictures are shown at once. `pipeline.results.backbones` builds
the backbones of a record.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from patchsae.pipeline.core import registry
from patchsae.pipeline.core.config import explain
from patchsae.pipeline.images import datasets
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.pixels import Reading
from patchsae.storage.errors import UserError
from patchsae.storage.records import ExperimentRecord, RecordedNode


@dataclass(frozen=True)
class Place:
    """A node of a recorded experiment, at `address` in it. `experiment` is the name of the record."""

    experiment: str
    record: ExperimentRecord
    node: RecordedNode
    address: str = ""

    @property
    def name(self) -> str:
        """The address without the stage."""
        return self.address.partition("/")[2]

    @property
    def is_whole(self) -> bool:
        """Whether the record holds the experiment's configs; records of old stores do not."""
        return self.record.experiment is not None

    @property
    def configs(self) -> dict[str, Any]:
        """The whole resolved experiment as JSON values. Raises UserError if the record does not hold it."""
        if self.record.experiment is None:
            raise UserError(
                f"experiment {self.experiment}: its record is of an older version, which does not say where the images "
                "and weights are; run it once more (nothing is computed again)."
            )
        return self.record.experiment

    @cached_property
    def dataset(self) -> DatasetConfig:
        """The dataset that the node is about. Raises UserError if the record does not hold its config."""
        name = self.node.names.get("dataset", "")
        raw = self.configs.get("datasets", {}).get(name)
        kind = registry.variants(datasets, DatasetConfig).get((raw or {}).get("kind", ""))
        if raw is None or kind is None:
            raise UserError(
                f"experiment {self.experiment}: its record has no dataset `{name}` of a kind that this version knows; "
                "run it once more."
            )
        try:
            return kind.model_validate(raw)
        except ValidationError as error:
            raise explain(error, f"experiment {self.experiment}, dataset {name}") from None

    @property
    def reading(self) -> Reading:
        """How the files of the dataset are read; the default if the record does not say it."""
        return self.dataset.reading() if self.is_whole else Reading()
