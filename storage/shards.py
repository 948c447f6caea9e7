"""Zarr v3's sharding format: encoding of a whole shard, and reading of the index of its chunks.

`storage.activations` writes shards with it, and `storage.chunk_reader` finds chunks with it.

The bytes are those that Zarr writes and reads. Encoding is several times as fast, since it copies no data and
reads nothing back.
"""

from __future__ import annotations

import os
from pathlib import Path

import google_crc32c
import numpy as np

# The bits of NaN in the stored type, with which chunks are padded. Zarr has no bfloat16: its bits are stored
# as uint16.
NAN_BITS = {"float16": 0x7E00, "uint16": 0x7FC0}
CRC_BYTES = 4
_ABSENT = np.iinfo(np.uint64).max


def encode(values: np.ndarray, chunk_images: int, chunks_per_shard: int) -> list[memoryview]:
    """The bytes of a shard: its chunks, each followed by its crc32c, then the index followed by its crc32c.

    The index holds an (offset, size) pair per chunk. The last chunk is padded with NaN to full size. Chunks
    past the end of the array are marked as absent.
    """
    index = np.full((chunks_per_shard, 2), _ABSENT, "<u8")
    buffers: list[memoryview] = []
    offset = 0
    bits = np.ascontiguousarray(values).view(np.uint16)
    for number, start in enumerate(range(0, len(bits), chunk_images)):
        chunk = bits[start : start + chunk_images]
        if len(chunk) < chunk_images:
            padded = np.full((chunk_images, *bits.shape[1:]), NAN_BITS[str(values.dtype)], np.uint16)
            padded[: len(chunk)] = chunk
            chunk = padded
        buffers += _with_crc32c(chunk)
        index[number] = (offset, chunk.nbytes + CRC_BYTES)
        offset += chunk.nbytes + CRC_BYTES
    return [*buffers, *_with_crc32c(index)]


def _with_crc32c(data: np.ndarray) -> tuple[memoryview, memoryview]:
    flat = data.reshape(-1).view(np.uint8)
    return memoryview(flat.data), memoryview(google_crc32c.value(flat).to_bytes(CRC_BYTES, "little"))


def is_sound(content: memoryview | bytes, crc: bytes | bytearray) -> bool:
    """Whether `content` matches the crc32c that was stored with it."""
    return google_crc32c.value(np.frombuffer(content, np.uint8)) == int.from_bytes(crc, "little")


def read_index(path: Path, chunks_per_shard: int) -> np.ndarray:
    """(offset, size) of every chunk, from the index at the end of a shard: int64 [chunks, 2].

    Returns no rows if the index is damaged.
    """
    n_bytes = chunks_per_shard * 16
    with path.open("rb") as file:
        file.seek(-(n_bytes + CRC_BYTES), os.SEEK_END)
        data = file.read()
    if not is_sound(data[:n_bytes], data[n_bytes:]):
        return np.empty((0, 2), np.int64)
    return np.frombuffer(data[:n_bytes], "<i8").reshape(-1, 2)
