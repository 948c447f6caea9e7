"""Stage `extract`: computes the activations of every image at the hook and stores them as one Zarr array.

Decoding (in a thread or in worker processes), the forward pass and writing (in a thread) overlap. One shard
is one part. On a CPU every forward pass takes exactly one chunk of images, so that neither the number of
workers nor the batch size changes a byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig, ExtractConfig, resolve_block
from patchsae.pipeline.backbones.effort import image_amounts, load_amounts
from patchsae.pipeline.backbones.weights import load_backbone
from patchsae.pipeline.core.config import INLINE, Config, Unhashed
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.prefetch import prefetch, thread_pool
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
from patchsae.pipeline.images.dataset import DatasetConfig
from patchsae.pipeline.images.indexed import indexed_images, loader_of
from patchsae.pipeline.images.speed import images_probe
from patchsae.storage.activations import ActivationTemplate, ActivationWriter
from patchsae.storage.artifacts import Builder
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary

# What a shard adds beside its values: a checksum and a place in the index per chunk, and the entries of its part
# in the ledger and in the manifest.
_ARRAY_BYTES_PER_CHUNK, _BYTES_PER_PART, _METADATA_BYTES = 20, 500, 1_500


class ExtractStageConfig(Config):
    """Which images go through which backbone, and how their activations are stored."""

    dataset: Annotated[DatasetConfig, Unhashed("its images are an input")]
    backbone: Annotated[BackboneConfig, INLINE]
    extract: ExtractConfig


def batches_of(template: ActivationTemplate, parts: Sequence[int], batch_images: int) -> list[list[int]]:
    """The rows of each forward pass: the shards in order, cut into batches that each lie within one shard."""
    return [
        list(range(start, min(start + batch_images, template.shard_range(part).stop)))
        for part in parts
        for start in range(template.shard_range(part).start, template.shard_range(part).stop, batch_images)
    ]


def to_stored(activations: Tensor, dtype: str, where: str) -> np.ndarray:
    """Casts float32 activations to float16, or to bfloat16 as its bits in uint16.

    Raises UserError, naming `where` and the largest value, if a value does not fit.
    """
    cast = activations.to(torch.float16 if dtype == "float16" else torch.bfloat16)
    if not torch.isfinite(cast).all():
        largest = activations.abs().max().item()
        remedy = "set extract.dtype to bfloat16" if np.isfinite(largest) else "check the weights"
        raise UserError(f"{where}: activations up to {largest:g} do not fit {dtype}; {remedy}.")
    return (cast if dtype == "float16" else cast.view(torch.uint16)).cpu().numpy()


def _run(config: ExtractStageConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    backbone = load_backbone(config.backbone, inputs, runtime.device, runtime.reporter)
    settings = config.extract
    images = indexed_images(config.dataset, inputs["images"], backbone.preprocess)
    template = ActivationTemplate.plan(len(images), backbone.layout.n_tokens, backbone.width, settings.dtype)
    attributes = {
        "image_size": list(backbone.image_size),
        "hook_block": backbone.hook_block,
        "precision": settings.precision,
    }
    writer = ActivationWriter(out, template, backbone.layout, attributes)
    missing = out.ledger.missing(template.n_shards)
    batch_images = template.chunk_images
    if runtime.device != "cpu":
        batch_images *= max(1, runtime.batch_images // template.chunk_images)
    batches = batches_of(template, missing, batch_images)
    loader = loader_of(images, batches, runtime)
    n_before = len(images) - sum(len(batch) for batch in batches)
    with runtime.reporter.bar("extract", len(images), "images", n_before) as bar:
        forward = _forward(backbone, loader, settings.dtype, f"block {backbone.hook_block}")
        write_shards(out, writer, missing, _counted(forward, bar.advance))
    return {
        "n_images": template.n_images,
        "tokens_per_image": template.tokens_per_image,
        "width": template.width,
        "dtype": template.dtype,
        "hook_block": backbone.hook_block,
    }


def _forward(
    backbone: Backbone, loader: Iterable[Tensor | UserError], dtype: str, where: str
) -> Iterator[np.ndarray]:
    for pixels in prefetch(loader):
        if isinstance(pixels, UserError):
            raise pixels
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
    """Gathers batches, shard by shard in the order of `parts`, and writes each full shard in a thread."""
    template = writer.template

    def write(part: int, values: np.ndarray) -> None:
        file = writer.write(template.shard_range(part).start, values)
        out.ledger.record(part, [file])

    pending: Future[None] | None = None
    with thread_pool(1, "shards") as pool:
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
        # Asking for one more batch lets the loader end its workers.
        for _ in batches:
            raise AssertionError("more batches than parts")


def _predict(config: ExtractStageConfig, inputs: Upstreams) -> Prediction:
    images, weights = inputs["images"], inputs["weights"]
    n_images = images.n_images or config.dataset.expected_images()
    names = ("tokens_per_image", "width", "n_prefix_tokens")
    tokens, width, n_prefix = (weights.fact(name) for name in names)
    facts = {"tokens_per_image": tokens, "width": width, "n_prefix_tokens": n_prefix}
    if (n_blocks := weights.fact("n_blocks")) is not None:
        resolve_block(config.extract.hook_block, n_blocks)
    if None in (n_images, tokens, width):
        return Prediction(facts)
    assert n_images is not None
    template = ActivationTemplate.plan(n_images, tokens, width, config.extract.dtype)
    per_shard = _ARRAY_BYTES_PER_CHUNK * template.chunks_per_shard + _BYTES_PER_PART
    n_bytes = template.n_bytes + template.n_shards * per_shard + MANIFEST_BYTES + _METADATA_BYTES
    effort = [*load_amounts(weights), *(image_amounts(config.backbone, weights, n_images, heads=True) or [])]
    if images.source is not None:
        effort.append((images_probe(config.dataset, images.source), n_images))
    return Prediction({"n_images": n_images, **facts}, n_bytes, 0, effort)


STAGE = Stage(
    name="extract",
    version=1,
    section="backbones",
    description="Activations at the hook, image by image.",
    run=_run,
    predict=_predict,
)
