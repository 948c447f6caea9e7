"""Writing activations (whole shards, crc32c, fsync, sha256, ledger) against a raw np.memmap of the same bytes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.report import Measurement, parser, report, seconds
from patchsae.pipeline.activations.extract import write_shards
from patchsae.storage.activations import ActivationTemplate, ActivationWriter
from patchsae.storage.store import Store
from patchsae.storage.tokens import TokenLayout


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--images", type=int, default=1024, help="ViT-B/16 images of 197 tokens x 768 channels"
    )
    arguments = options.parse_args()
    template = ActivationTemplate.plan(arguments.images, 197, 768, "float16")
    rng = np.random.default_rng(0)
    values = rng.standard_normal((arguments.images, 197, 768), np.float32).astype(np.float16)
    folder = Path(tempfile.mkdtemp(prefix="patchsae-writer-"))

    def write_memmap() -> None:
        raw = np.memmap(folder / "raw.bin", np.float16, "w+", shape=values.shape)
        raw[:] = values
        raw.flush()

    def write_store() -> None:
        shutil.rmtree(folder / "store", ignore_errors=True)
        out = Store(folder / "store").begin(Store(folder / "store").at("extract", "0" * 64))
        writer = ActivationWriter(out, template, TokenLayout(1, (14, 14)), {})
        chunks = (
            values[start : min(start + template.chunk_images, template.shard_range(part).stop)]
            for part in range(template.n_shards)
            for start in range(
                template.shard_range(part).start, template.shard_range(part).stop, template.chunk_images
            )
        )
        write_shards(out, writer, list(range(template.n_shards)), chunks)

    try:
        ours, raw = seconds(write_store), seconds(write_memmap)
    finally:
        shutil.rmtree(folder)
    n_tokens = arguments.images * 197
    report(
        "writing activations, float16, d=768",
        {
            "writer / memmap": Measurement(value=raw / ours, target=0.5, unit="ratio"),
            "writer": Measurement(value=n_tokens / ours, target=None, unit="tokens/s"),
            "memmap": Measurement(value=n_tokens / raw, target=None, unit="tokens/s"),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
