"""The shuffled stream over cached activations: tokens/s, against a per-row reservoir loader, and how well it mixes."""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.report import Measurement, parser, report
from patchsae.pipeline.activations.stream import Batch, Stream, measure_mixing
from patchsae.storage.activations import Activations, ActivationTemplate, ActivationWriter
from patchsae.storage.keys import artifact_key
from patchsae.storage.store import Store
from patchsae.storage.tokens import TokenLayout

_RESERVOIR_BATCHES = 8
_SEED = 0


def reservoir(activations: Activations, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """What loaders of this kind do: a reservoir of rows, of which Python draws one at a time and puts the next
    row that was read in its place. Patch tokens, chunks in random order."""
    rng = np.random.default_rng(seed)
    chunks = activations.chunk_ranges(0, activations.n_images)
    patches = activations.layout.select("patches")

    def rows() -> Iterator[np.ndarray]:
        while True:
            for number in rng.permutation(len(chunks)):
                read = activations.read(chunks[number].start, chunks[number].stop)
                yield from read[:, patches.start : patches.stop].reshape(-1, activations.width)

    incoming = rows()
    held = np.stack([next(incoming) for _ in range(_RESERVOIR_BATCHES * batch_size)])
    while True:
        batch = np.empty((batch_size, activations.width), held.dtype)
        for row in range(batch_size):
            drawn = int(rng.integers(len(held)))
            batch[row] = held[drawn]
            held[drawn] = next(incoming)
        yield batch


def tokens_per_second(batches: Iterable[np.ndarray], n_batches: int) -> float:
    """Over `n_batches`, after one that is not counted."""
    iterator = iter(batches)
    next(iterator)
    started = time.perf_counter()
    n_tokens = sum(len(next(iterator)) for _ in range(n_batches))
    return n_tokens / (time.perf_counter() - started)


def digest(batches: Iterable[Batch]) -> list[str]:
    """One digest per batch, of activations and where they come from."""
    return [
        hashlib.sha256(b.activations.tobytes() + b.image.tobytes() + b.token.tobytes()).hexdigest()
        for b in batches
    ]


def _cache(folder: Path, n_images: int, tokens_per_image: int, width: int) -> Activations:
    template = ActivationTemplate.plan(n_images, tokens_per_image, width, "float16")
    store = Store(folder)
    out = store.begin(store.at("extract", artifact_key("extract", 1, {}, {})))
    writer = ActivationWriter(out, template, TokenLayout(1, (1, tokens_per_image - 1)), {})
    for shard in range(template.n_shards):
        rows = template.shard_range(shard)
        values = np.random.default_rng(shard).standard_normal(
            (len(rows), tokens_per_image, width), np.float32
        )
        out.ledger.record(shard, [writer.write(rows.start, values.astype(np.float16))])
    return Activations(store.commit(out, 1, {}, {}, {}, {}))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--images", type=int, default=2048, help="images in the cache")
    options.add_argument(
        "--tokens", type=int, default=197, help="tokens per image, one of them a prefix token"
    )
    options.add_argument("--width", type=int, default=768, help="channels")
    options.add_argument("--batch-size", type=int, default=4096, help="tokens per batch")
    options.add_argument("--threads", type=int, default=2, help="threads that read ahead")
    options.add_argument("--repeats", type=int, default=5, help="rounds, of which the median is taken")
    options.add_argument("--folder", type=Path, help="where to put the cache; default: the temporary folder")
    arguments = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="patchsae-stream-", dir=arguments.folder))
    try:
        activations = _cache(folder, arguments.images, arguments.tokens, arguments.width)

        def stream(seed: int = _SEED) -> Stream:
            return Stream(activations, range(arguments.images), arguments.batch_size, seed, "patches")

        n_batches = stream().n_tokens // arguments.batch_size
        ours, theirs = [], []
        # Taken in turn, so that what else the machine does meets both.
        for _ in range(arguments.repeats):
            batches = stream().batches(0, n_batches, arguments.threads)
            ours.append(tokens_per_second((b.activations for b in batches), n_batches - 1))
            plain = reservoir(activations, arguments.batch_size, _SEED)
            theirs.append(tokens_per_second(plain, max(1, min(10, n_batches // 8))))
        n_compared = min(60, n_batches)
        expected = digest(stream().batches(0, n_compared))
        equal = [
            mine == other
            for threads in (1, 2, 4)
            for mine, other in zip(expected, digest(stream().batches(0, n_compared, threads)), strict=True)
        ]
        middle = n_compared // 2
        equal.append(expected[middle] == digest([stream().batch(middle)])[0])
        mixing = measure_mixing(stream(), stream().batches(0, min(100, n_batches), arguments.threads))
    finally:
        shutil.rmtree(folder)
    rate, plain_rate = statistics.median(ours), statistics.median(theirs)
    report(
        f"the shuffled stream, float16, d={arguments.width}, warm, {os.cpu_count()} cores",
        {
            "stream": Measurement(value=rate, target=300_000, unit="tokens/s"),
            "reservoir": Measurement(value=plain_rate, target=None, unit="tokens/s"),
            "stream / reservoir": Measurement(
                value=statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
                target=5,
                unit="ratio",
            ),
            "same batches with 0, 1, 2, 4 threads": Measurement(
                value=sum(equal) / len(equal), target=1, unit="share of batches"
            ),
            "positions present in a batch": Measurement(
                value=mixing.positions_present, target=1, unit=f"share of {arguments.tokens - 1} patches"
            ),
            "images in a batch": Measurement(
                value=mixing.images, target=None, unit="share of what uniform sampling shows"
            ),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
