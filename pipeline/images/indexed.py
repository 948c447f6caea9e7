"""The images of an index as a backbone's input, read and decoded in this process or in others.

The stage `extract` reads all images of a dataset with it, and adapters those that they are trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.images.dataset import Dataset, DatasetConfig, Record
from patchsae.pipeline.images.originals import original
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError


class IndexedImages(TorchDataset[Tensor]):
    """Maps a row of the `images` table to the backbone's input.

    Raises UserError if the image cannot be read or decoded, or is not the one that was indexed.
    """

    def __init__(
        self, dataset: Dataset, records: Sequence[Record], digests: Sequence[str], preprocess: Any
    ) -> None:
        self.dataset = dataset
        self.records = records
        self.digests = digests
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, row: int) -> Tensor:
        pixels: Tensor = self.preprocess(self.image(row))
        return pixels

    def image(self, row: int) -> Image.Image:
        """The RGB image of a row. Raises UserError as said above."""
        return original(self.dataset, self.records[row], self.digests[row])


class _Sent(TorchDataset["Tensor | UserError"]):
    """Images as a worker process sends them: the backbone's input, or the error that there is none.

    An error that is raised in a worker comes out of torch's loader with a traceback in its message.
    """

    def __init__(self, images: TorchDataset[Tensor]) -> None:
        self.images = images

    def __getitem__(self, item: Any) -> Tensor | UserError:
        try:
            return self.images[item]
        except UserError as error:
            return error

    @staticmethod
    def batch(items: list[Tensor | UserError]) -> Tensor | UserError:
        """A batch of images, or the first error among them."""
        errors = [item for item in items if isinstance(item, UserError)]
        return errors[0] if errors else default_collate(items)


def indexed_images(config: DatasetConfig, images: Artifact, preprocess: Any) -> IndexedImages:
    """All images of an index artifact, in row order."""
    rows = images.scan("images").select("source", "label", "class_name", "split", "digest").collect()
    records = [Record(*row[:4]) for row in rows.iter_rows()]
    return IndexedImages(config.build(), records, rows["digest"].to_list(), preprocess)


def loader_of(
    images: TorchDataset[Tensor], batches: Sequence[list[Any]], runtime: Runtime
) -> Iterable[Tensor | UserError]:
    """The images of every batch, [B, 3, height, width], or the error that there are none.

    `batches` hold what `images` is indexed with, such as rows. With `runtime.workers` other processes decode them.
    """
    return DataLoader(
        _Sent(images),
        batch_sampler=batches,
        collate_fn=_Sent.batch,
        num_workers=runtime.workers,
        # Spawned, because forking a process that has threads (Prefect's, Polars') sometimes fails.
        multiprocessing_context="spawn" if runtime.workers else None,
        prefetch_factor=2 if runtime.workers else None,
        pin_memory=runtime.device != "cpu",
    )
