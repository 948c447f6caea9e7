"""The training stream: batches of shuffled tokens from cached activations, a pure function of (seed, step).

`pipeline.training.train` trains on it.

Shapes: n tokens of a batch, t selected tokens per image, d channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.activations.shuffle import Block, Piece, ShuffleOrder, expected_groups
from patchsae.pipeline.core.prefetch import thread_pool
from patchsae.storage.activations import ActivationDtype, Activations
from patchsae.storage.chunk_reader import ChunkReader
from patchsae.storage.tokens import TokenSelection

Mix = Literal["tokens", "images"]

# Two blocks are in memory at a time. Larger blocks mix better; this size is 790 images of ViT-B/16.
BLOCK_BYTES = 240_000_000


@dataclass(frozen=True)
class Batch:
    """Tokens with their origin. `activations` are as stored: float16, or uint16 bits of bfloat16."""

    activations: np.ndarray  # [n, d]
    image: np.ndarray  # [n] int64, row of the `images` table
    token: np.ndarray  # [n] int16, token of that image, prefix tokens first
    dtype: ActivationDtype

    def to_float32(self, device: str = "cpu") -> Tensor:
        """The activations on a device: [n, d] float32. They are moved as stored, with half as many bytes."""
        stored = torch.from_numpy(self.activations.view(np.int16))
        return stored.to(device).view(getattr(torch, self.dtype)).float()


@dataclass
class _Loading:
    """A block that is being read into memory. `values` are complete once `work` is exhausted."""

    block: Block
    values: np.ndarray  # [images and room for more, kept tokens, d], images in storage order
    images: np.ndarray  # [images] int64
    work: Iterator[object]

    def finish(self) -> None:
        for _ in self.work:
            pass


class Stream:
    """Batches of tokens of the images `rows` of an activation array.

    With `mix="tokens"`, single tokens are shuffled and `batch_size` counts tokens. With `mix="images"`,
    images are shuffled, each with all its selected tokens in order, and `batch_size` counts images (as in the
    paper, spec 2.7). The same arguments give the same batches, whatever the number of threads and whichever
    batch comes first. Raises ValueError if nothing is selected.
    """

    def __init__(
        self,
        activations: Activations,
        rows: range,
        batch_size: int,
        seed: int,
        tokens: TokenSelection = "all",
        mix: Mix = "tokens",
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.activations = activations
        self.batch_size = batch_size
        self.tokens = activations.layout.select(tokens)
        # Chunks are read straight into a block with all their tokens. Only the prefix tokens, which are few,
        # are copied from them.
        self._kept = self.tokens if tokens == "prefix" else range(activations.tokens_per_image)
        self._reader = ChunkReader(activations)
        self.chunks = activations.chunk_ranges(rows.start, rows.stop)
        self._tokens_per_unit = 1 if mix == "tokens" else len(self.tokens)
        self._units_per_image = len(self.tokens) // self._tokens_per_unit if self.tokens else 0
        chunk_bytes = activations.chunk_images * len(self._kept) * activations.width * 2
        self.order = ShuffleOrder(
            [len(chunk) * self._units_per_image for chunk in self.chunks],
            max(1, block_bytes // max(1, chunk_bytes)),
            seed,
        )

    @property
    def n_tokens(self) -> int:
        """The number of tokens in one epoch."""
        return self.order.n_units * self._tokens_per_unit

    @property
    def tokens_per_batch(self) -> int:
        return self.batch_size * self._tokens_per_unit

    def batch(self, step: int) -> Batch:
        """Batch number `step`, read without the batches before it."""
        return next(self.batches(step, step + 1))

    def batches(self, first: int, last: int, threads: int = 0) -> Iterator[Batch]:
        """Batches `first` to `last`, without the last.

        `threads` threads read ahead; with 0 the caller's reads.
        """
        pieces = self.order.pieces(first * self.batch_size, (last - first) * self.batch_size)
        batch, n_filled = self._empty_batch(), 0
        with thread_pool(threads, "stream") if threads else nullcontext() as pool:
            for piece, loaded in self._in_memory(pieces, pool):
                units = self.order.within(piece.block)[piece.start : piece.stop]
                while len(units):
                    taken, units = np.split(units, [self.batch_size - n_filled])
                    self._gather(loaded, taken, batch, n_filled)
                    n_filled += len(taken)
                    if n_filled == self.batch_size:
                        yield batch
                        batch, n_filled = self._empty_batch(), 0

    def _in_memory(
        self, pieces: Iterable[Piece], pool: ThreadPoolExecutor | None
    ) -> Iterator[tuple[Piece, _Loading]]:
        """Each piece with its block in memory, while the next block is being read: two blocks at most."""
        loading: _Loading | None = None
        spare: np.ndarray | None = None
        for piece, following in itertools.pairwise(itertools.chain(pieces, [None])):
            assert piece is not None
            current = loading or self._start_loading(piece.block, None, pool)
            current.finish()
            if following is None:
                loading = None
            elif following.block.chunks == current.block.chunks:
                # Data that fits into one block is read once and only shuffled again in every epoch.
                loading = replace(current, block=following.block)
            else:
                loading, spare = self._start_loading(following.block, spare, pool), None
            yield piece, current
            if loading is None or loading.values is not current.values:
                spare = current.values

    def _start_loading(
        self, block: Block, room: np.ndarray | None, pool: ThreadPoolExecutor | None
    ) -> _Loading:
        """Begins to read a block into `room`, the memory of a block no longer needed, or into new memory."""
        if room is None:
            n_images = self.order.max_chunks_per_block * self.activations.chunk_images
            room = np.empty((n_images, len(self._kept), self.activations.width), self._stored_dtype)
        chunks = [self.chunks[number] for number in block.chunks]
        images = np.concatenate([np.arange(chunk.start, chunk.stop) for chunk in chunks])
        places = np.split(room[: len(images)], np.cumsum([len(chunk) for chunk in chunks])[:-1])
        return _Loading(
            block, room, images, iter((pool.map if pool else map)(self._read_chunk, chunks, places))
        )

    def _read_chunk(self, chunk: range, place: np.ndarray) -> None:
        if len(self._kept) == self.activations.tokens_per_image:
            self._reader.read_into(chunk, place)
        else:
            whole = np.empty(
                (len(chunk), self.activations.tokens_per_image, self.activations.width), place.dtype
            )
            self._reader.read_into(chunk, whole)
            place[:] = whole[:, self._kept.start : self._kept.stop]

    @property
    def _stored_dtype(self) -> np.dtype:
        return np.dtype(np.float16 if self.activations.dtype == "float16" else np.uint16)

    def _empty_batch(self) -> Batch:
        n = self.tokens_per_batch
        values = np.empty((n, self.activations.width), self._stored_dtype)
        return Batch(values, np.empty(n, np.int64), np.empty(n, np.int16), self.activations.dtype)

    def _gather(self, loaded: _Loading, units: np.ndarray, batch: Batch, n_filled: int) -> None:
        """Copies units of a block into a batch, behind the `n_filled` units that it holds already."""
        k = self._tokens_per_unit
        place = slice(n_filled * k, (n_filled + len(units)) * k)
        image, token = np.divmod((units[:, None] * k + np.arange(k)).ravel(), len(self.tokens))
        token += self.tokens.start
        batch.image[place] = loaded.images[image]
        batch.token[place] = token
        flat = loaded.values.reshape(-1, self.activations.width)
        rows = image * len(self._kept) + (token - self._kept.start)
        # `mode="clip"` lets NumPy write straight into `out`; it is twice as fast.
        np.take(flat, rows, axis=0, out=batch.activations[place], mode="clip")


@dataclass(frozen=True)
class Mixing:
    """How well batches are mixed, as means over batches."""

    positions: float
    """Distinct token positions in a batch, as a share of those expected in a uniform draw from the epoch."""
    positions_present: float
    """Distinct token positions in a batch, as a share of all selected positions."""
    images: float
    """Distinct images in a batch, as a share of those expected in a uniform draw from the epoch."""


def measure_mixing(stream: Stream, batches: Iterable[Batch]) -> Mixing:
    """How well some batches of a stream are mixed."""
    n_positions = len(stream.tokens)
    n_images = stream.n_tokens // n_positions
    positions, images = np.transpose(
        [(len(np.unique(batch.token)), len(np.unique(batch.image))) for batch in batches]
    )
    n = stream.tokens_per_batch
    return Mixing(
        positions=float(positions.mean()) / expected_groups(n_positions, n_images, n),
        positions_present=float(positions.mean()) / n_positions,
        images=float(images.mean()) / expected_groups(n_images, n_positions, n),
    )
