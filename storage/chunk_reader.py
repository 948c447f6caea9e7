"""Whole chunks of cached activations straight from their shards, at a seventh of the CPU time Zarr takes.

Only the layout that `ActivationWriter` writes is read here; whatever looks different is left to Zarr, which reads
it or says what is damaged.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import google_crc32c
import numpy as np

from storage.activations import ARRAY, Activations

_CRC_BYTES = 4
_CACHED_INDEXES = 4096


class ChunkReader:
    """Reads the chunks of one artifact. Threads may share it; they read in parallel."""

    def __init__(self, activations: Activations) -> None:
        self.activations = activations
        self._shape = (activations.chunk_images, activations.tokens_per_image, activations.width)
        self._dtype = np.dtype("<f2" if activations.dtype == "float16" else "<u2")
        self._n_bytes = int(np.prod(self._shape)) * self._dtype.itemsize
        self._chunks_per_shard = activations.shard_images // activations.chunk_images
        self._index = lru_cache(_CACHED_INDEXES)(self._read_index)

    def read_into(self, images: range, place: np.ndarray) -> None:
        """Images of one chunk into `place` [images, tokens, channels], which is contiguous and of the stored type.

        Raises UserError naming a damaged shard.
        """
        if len(images) == self._shape[0]:
            is_read = self._read_chunk(images.start, place)
        else:
            chunk = np.empty(self._shape, self._dtype)
            is_read = self._read_chunk(images.start, chunk)
            first = images.start % self._shape[0]
            place[:] = chunk[first : first + len(images)]
        if not is_read:
            place[:] = self.activations.read(images.start, images.stop)

    def _read_chunk(self, image: int, place: np.ndarray) -> bool:
        """The chunk that holds `image`, if it is where and what it should be."""
        shard, within = divmod(image, self.activations.shard_images)
        path = self.activations.artifact.path / ARRAY / "c" / str(shard) / "0" / "0"
        try:
            with path.open("rb", buffering=0) as file:
                offset, n_bytes = self._index(path)[within // self._shape[0]].tolist()
                if n_bytes != self._n_bytes + _CRC_BYTES:
                    return False
                stored_crc = bytearray(_CRC_BYTES)
                # Unlike a reshaped array, a cast view is never a copy.
                content = place.data.cast("B")
                if os.preadv(file.fileno(), [content, stored_crc], offset) != n_bytes:
                    return False
        except (OSError, IndexError):
            return False
        return google_crc32c.value(np.frombuffer(content, np.uint8)) == int.from_bytes(stored_crc, "little")

    def _read_index(self, path: Path) -> np.ndarray:
        """(offset, size) of the chunks of a shard, from its end: [chunks, 2]; empty if it is damaged."""
        n_bytes = self._chunks_per_shard * 16
        with path.open("rb") as file:
            file.seek(-(n_bytes + _CRC_BYTES), os.SEEK_END)
            data = file.read()
        if google_crc32c.value(data[:n_bytes]) != int.from_bytes(data[n_bytes:], "little"):
            return np.empty((0, 2), np.int64)
        return np.frombuffer(data[:n_bytes], "<i8").reshape(-1, 2)
