"""How fast the images of a dataset are read and decoded on this machine, measured on a few of them."""

from __future__ import annotations

import contextlib
import os
import time

from patchsae.pipeline.core.prediction import Probe, Source
from patchsae.pipeline.core.prefetch import thread_pool
from patchsae.pipeline.images.dataset import Dataset, DatasetConfig, Record
from patchsae.storage.keys import digest_bytes

_IMAGES, _SECONDS = 16, 0.4


def images_probe(config: DatasetConfig, source: Source, decode: bool = True) -> Probe:
    """Reading, digesting and decoding images of this dataset by all cores; without `decode`, looking at them as the
    stage `index` does. A unit is an image."""
    name = digest_bytes(f"{config.model_dump_json()} {source.fingerprint}".encode())[:16]
    what = "images" if decode else "looking at images"
    return Probe(f"{what} {name}, {os.cpu_count()} cores", lambda: _measure(config, decode))


def _measure(config: DatasetConfig, decode: bool) -> float:
    dataset = config.build()
    records = dataset.records()
    # From all over the dataset, so that one odd folder at its beginning does not decide.
    side = config.thumbnail_side(len(records))
    chosen = records[:: max(1, len(records) // _IMAGES)][:_IMAGES]
    workers = os.cpu_count() or 1
    started, n = time.perf_counter(), 0
    with thread_pool(workers, "speed") as pool:
        for start in range(0, len(chosen), workers):
            few = chosen[start : start + workers]
            n += len(list(pool.map(lambda record: _read(dataset, record, decode, side), few)))
            if time.perf_counter() - started > _SECONDS:
                break
    return (time.perf_counter() - started) / max(1, n)


def _read(dataset: Dataset, record: Record, decode: bool, side: int) -> None:
    # The index lists an image that cannot be read.
    with contextlib.suppress(OSError):
        data = dataset.read(record)
        digest_bytes(data)
        if decode:
            dataset.decode(data)
        elif side:
            dataset.inspect_small(data, side)
        else:
            dataset.inspect(data)
