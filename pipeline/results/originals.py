"""`Originals`: the images of an index, read again from where its experiment says that they are.

A store does not hold the images themselves. It does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from patchsae.pipeline.images.dataset import Dataset, DatasetConfig, Record
from patchsae.pipeline.images.datasets.image_folder import ImageFolderConfig
from patchsae.pipeline.images.originals import original
from patchsae.pipeline.results.places import Place
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError


@dataclass(frozen=True)
class Originals:
    """The images of an index artifact. `place` names their dataset, if there is a record that does."""

    index: Artifact
    place: Place | None = None

    @cached_property
    def config(self) -> DatasetConfig | None:
        """The dataset of the record, or else a folder where the index found the images; None if neither is known."""
        if self.place is not None and self.place.is_whole:
            return self.place.dataset
        root = self.index.manifest.provenance.get("source", {}).get("root")
        return None if root is None else ImageFolderConfig(root=root)

    @cached_property
    def folder(self) -> str | None:
        """The folder that sources are relative to; None if images are not files, or if it is not known."""
        return None if self.config is None else self.config.location().get("root")

    @cached_property
    def why_not(self) -> str | None:
        """Why no image can be shown, as a sentence; None if they may be there. No image is opened."""
        if self.config is None:
            return "The store does not say where the images are; run the experiment once more (nothing is computed again)."
        if self.folder is not None and not Path(self.folder).is_dir():
            return f"{self.folder}: the images were in this folder, which is not there any more; put it back."
        return None

    def row(self, image: int) -> dict[str, Any]:
        """The row of the table `images`. Raises UserError if there is no such image."""
        images = self.index.scan("images")
        found = images.slice(image, 1).collect() if image >= 0 else pl.DataFrame()
        if found.is_empty():
            n_images = images.select(pl.len()).collect().item()
            raise UserError(f"image {image}: the dataset has the rows 0 to {n_images - 1}.")
        return found.row(0, named=True)

    def image(self, image: int) -> Image.Image:
        """The RGB image of a row, as it was indexed.

        Raises UserError if there is no such row, and NoOriginal if the image is gone or has changed.
        """
        row = self.row(image)
        if self._dataset is None:
            raise UserError(f"image {image}: {self.why_not}")
        record = Record(row["source"], row["label"], row["class_name"], row["split"])
        return original(self._dataset, record, row["digest"])

    @cached_property
    def _dataset(self) -> Dataset | None:
        return None if self.config is None else self.config.build()
