"""Stage `extract`: the activations of every image at the hook, cached as one Zarr array.

Decoding (a thread, or worker processes), the forward pass and writing (a thread) overlap. One shard is one part. On
a CPU the forward pass always takes exactly one chunk of images, so that neither the workers nor the batch change a
byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pipeline.backbones.base import Backbone, BackboneConfig
from pipeline.config import Config
from pipeline.datasets.base import Dataset, DatasetConfig, Record
from pipeline.prefetch import prefetch
from pipeline.stage import Inputs, Runtime, Stage
from pipeline.weights import load_backbone
from storage import tables
from storage.activations import ActivationTemplate, ActivationWriter
from storage.artifacts import Artifact, Builder, Summary
from storage.errors import UserError
from storage.keys import digest_bytes


class ExtractStageConfig(Config):
    """Which images through which backbone."""

    dataset: DatasetConfig
    backbone: BackboneConfig


class IndexedImages(TorchDataset[Tensor]):
    """Row of the `images` table -> the backbone's input, refusing an image that is not the one indexed."""

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
        record = self.records[row]
        try:
            data = self.dataset.read(record)
        except OSError as error:
            raise UserError(
                f"{record.source}: cannot be read any more ({error}); put it back, or index again."
            ) from None
        if digest_bytes(data) != self.digests[row]:
            raise UserError(
                f"{record.source}: is not the image that was indexed; run again to index it anew."
            )
        pixels: Tensor = self.preprocess(self.dataset.decode(data))
        return pixels


def indexed_images(config: DatasetConfig, images: Artifact, preprocess: Any) -> IndexedImages:
    """Every image of an index artifact, in row order."""
    rows = tables.of(images, "images").select("source", "label", "class_name", "split", "digest").collect()
    records = [Record(*row[:4]) for row in rows.iter_rows()]
    return IndexedImages(config.build(), records, rows["digest"].to_list(), preprocess)


def batches_of(template: ActivationTemplate, parts: Sequence[int], batch_images: int) -> list[list[int]]:
    """Rows of each forward pass: the shards in order, cut into batches that never straddle a shard."""
    return [
        list(range(start, min(start + batch_images, template.shard_range(part).stop)))
        for part in parts
        for start in range(template.shard_range(part).start, template.shard_range(part).stop, batch_images)
    ]


def to_stored(activations: Tensor, dtype: str, where: str) -> np.ndarray:
    """float32 -> float16, or bfloat16 bits as uint16. Raises UserError, naming the layer and its maximum, if a
    value does not fit."""
    cast = activations.to(torch.float16 if dtype == "float16" else torch.bfloat16)
    if not torch.isfinite(cast).all():
        largest = activations.abs().max().item()
        remedy = "set extract.dtype to bfloat16" if np.isfinite(largest) else "check the weights"
        raise UserError(f"{where}: activations up to {largest:g} do not fit {dtype}; {remedy}.")
    return (cast if dtype == "float16" else cast.view(torch.uint16)).cpu().numpy()


def _run(config: ExtractStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    backbone = load_backbone(config.backbone, inputs["weights"], runtime.device)
    settings = config.backbone.extract
    images = indexed_images(config.dataset, inputs["images"], backbone.preprocess)
    template = ActivationTemplate.plan(len(images), backbone.tokens_per_image, backbone.width, settings.dtype)
    attributes = {
        "n_prefix_tokens": backbone.n_prefix_tokens,
        "grid": list(backbone.grid),
        "image_size": list(backbone.image_size),
        "hook_block": backbone.hook_block,
        "precision": settings.precision,
    }
    writer = ActivationWriter(out.path, template, attributes)
    missing = out.ledger.missing(template.n_shards)
    batch_images = template.chunk_images
    if runtime.device != "cpu":
        batch_images *= max(1, runtime.batch_images // template.chunk_images)
    batches = batches_of(template, missing, batch_images)
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=runtime.workers,
        # Forking a process that has threads (Prefect's, Polars') fails now and then.
        multiprocessing_context="spawn" if runtime.workers else None,
        prefetch_factor=2 if runtime.workers else None,
        pin_memory=runtime.device != "cpu",
    )
    n_before = len(images) - sum(len(batch) for batch in batches)
    with runtime.reporter.bar("extract", len(images), "images", n_before) as bar:
        forward = _forward(backbone, loader, settings.dtype, f"block {backbone.hook_block}")
        write_shards(out, writer, missing, _counted(forward, bar.advance))
    out.add(writer.metadata_file())
    return {
        "n_images": template.n_images,
        "tokens_per_image": template.tokens_per_image,
        "width": template.width,
        "dtype": template.dtype,
        "hook_block": backbone.hook_block,
    }


def _forward(backbone: Backbone, loader: Iterable[Tensor], dtype: str, where: str) -> Iterator[np.ndarray]:
    for pixels in prefetch(loader):
        with torch.inference_mode():
            activations = backbone.head(pixels)
        yield to_stored(activations, dtype, where)


def _counted(batches: Iterator[np.ndarray], advance: Any) -> Iterator[np.ndarray]:
    for batch in batches:
        yield batch
        advance(len(batch))


def write_shards(
    out: Builder, writer: ActivationWriter, parts: Sequence[int], batches: Iterator[np.ndarray]
) -> None:
    """Gathers batches (shard by shard, in the order of `parts`) and writes each full shard in the background."""
    template = writer.template

    def write(part: int, values: np.ndarray) -> None:
        file = writer.write(template.shard_range(part).start, values)
        out.ledger.record(part, [file])

    pending: Future[None] | None = None
    with ThreadPoolExecutor(1) as pool:
        for part in parts:
            n_images = len(template.shard_range(part))
            shard: np.ndarray | None = None
            filled = 0
            while filled < n_images:
                batch = next(batches)
                if shard is None:
                    shard = np.empty((n_images, *batch.shape[1:]), batch.dtype)
                shard[filled : filled + len(batch)] = batch
                filled += len(batch)
            if pending is not None:
                pending.result()
            assert shard is not None
            pending = pool.submit(write, part, shard)
        if pending is not None:
            pending.result()
        # Lets the loader end its workers.
        for _ in batches:
            raise AssertionError("more batches than parts")


def _predict_bytes(config: ExtractStageConfig, inputs: Mapping[str, Artifact | None]) -> int | None:
    shape = config.backbone.activation_shape()
    images = inputs["images"]
    if shape is None:
        return None
    n_images = config.dataset.expected_images()
    if images is not None:
        n_images = int(images.manifest.summary["n_images"] or 0)
    if n_images is None:
        return None
    return ActivationTemplate.plan(n_images, *shape, config.backbone.extract.dtype).n_bytes


STAGE = Stage(
    "extract",
    1,
    _run,
    key_config=lambda config: config.backbone.key_config(),
    predict_bytes=_predict_bytes,
)
