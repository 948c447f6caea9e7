"""How evaluations divide work on images into parts, one per shard, and read the activations of a part."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from patchsae.storage.activations import Activations, to_float32
from patchsae.storage.chunk_reader import ChunkReader


def part_rows(activations: Activations, rows: np.ndarray) -> list[np.ndarray]:
    """Cuts `rows`, ascending row numbers, into parts: the rows that each Zarr shard holds."""
    shard = rows // activations.shard_images
    return np.split(rows, np.flatnonzero(np.diff(shard)) + 1)


class PartImages:
    """The activations of one part's images, held in memory as they are stored and given out as float32.

    `rows` are ascending row numbers of images of one shard. Only chunks that hold one of them are read. Raises
    UserError, naming the shard, if one is damaged, was never written, or holds values that are not finite.
    """

    def __init__(self, activations: Activations, rows: np.ndarray, device: str) -> None:
        self._rows = rows
        self._dtype = activations.dtype
        self._device = device
        shape = (activations.tokens_per_image, activations.width)
        stored = np.float16 if activations.dtype == "float16" else np.uint16
        self._values = np.empty((len(rows), *shape), stored)
        reader = ChunkReader(activations)
        chunk = rows // activations.chunk_images
        cuts = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(rows)]
        for a, b in itertools.pairwise(cuts):
            images = range(int(rows[a]), int(rows[b - 1]) + 1)
            if len(images) == b - a:
                reader.read_into(images, self._values[a:b])
            else:
                whole = np.empty((len(images), *shape), stored)
                reader.read_into(images, whole)
                self._values[a:b] = whole[rows[a:b] - images.start]
        activations.check_finite(rows, self._values)

    def take(self, images: Sequence[int] | np.ndarray) -> Tensor:
        """The activations of images, given by their row numbers: [B, T, d] float32 on the device."""
        chosen = self._values[np.searchsorted(self._rows, np.asarray(images))]
        return torch.from_numpy(to_float32(chosen, self._dtype)).to(self._device)
