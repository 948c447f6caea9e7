"""The order in which `pipeline.activations.stream` reads tokens: only index arithmetic, no I/O.

A *unit* is what is shuffled: a token, or a whole image. In every epoch the chunks are permuted and cut into
blocks of equal size, and inside a block all units are permuted. So a block is read as whole chunks, and any
batch of any epoch follows from (seed, step) without the batches before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


def permutation(n: int, *entropy: int) -> np.ndarray:
    """A random order of `range(n)` that depends only on `n` and `entropy`: [n] int64.

    It sorts by numbers of Philox's raw stream, which NumPy keeps the same across versions; it does not
    promise that of `Generator.permutation`. Of each number, 32 bits are sorted in two passes over 16 bits,
    for which NumPy has a fast radix sort. Equal numbers are too rare to matter.
    """
    raw = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n)
    low, high = ((raw >> np.uint64(shift)).astype(np.uint16) for shift in (0, 16))
    order = np.argsort(low, kind="stable")
    return order[np.argsort(high[order], kind="stable")]


@dataclass(frozen=True)
class Block:
    """The chunks that are mixed with each other, in storage order; `epoch` and `number` seed the mixing."""

    epoch: int
    number: int
    chunks: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """Positions `start` to `stop` of a block's permuted units."""

    block: Block
    start: int
    stop: int


class ShuffleOrder:
    """The endless sequence of units, epoch after epoch.

    `units_of_chunk` [chunks] is the number of units in each chunk. A block has at most `chunks_per_block`
    chunks. Raises ValueError if there are no units.
    """

    def __init__(self, units_of_chunk: Sequence[int], chunks_per_block: int, seed: int) -> None:
        self.units_of_chunk = np.asarray(units_of_chunk, np.int64)
        self.n_units = int(self.units_of_chunk.sum())
        if not self.n_units:
            raise ValueError("nothing to shuffle: no chunk holds a unit")
        self.seed = seed
        # Blocks get equal shares of the chunks, because a last block of only one chunk would hardly be mixed.
        n_chunks = len(self.units_of_chunk)
        self.n_blocks = math.ceil(n_chunks / chunks_per_block)
        self._cuts = [block * n_chunks // self.n_blocks for block in range(self.n_blocks + 1)]
        self._epoch = lru_cache(maxsize=4)(self._plan_epoch)

    @property
    def max_chunks_per_block(self) -> int:
        return int(np.diff(self._cuts).max())

    def _plan_epoch(self, epoch: int) -> tuple[list[Block], np.ndarray]:
        """The blocks of an epoch, and the position in the epoch at which each of them ends."""
        order = permutation(len(self.units_of_chunk), self.seed, epoch)
        shares = [sorted(order[a:b].tolist()) for a, b in zip(self._cuts, self._cuts[1:], strict=False)]
        ends = np.cumsum([self.units_of_chunk[share].sum() for share in shares])
        return [Block(epoch, number, tuple(share)) for number, share in enumerate(shares)], ends

    def pieces(self, first: int, n: int) -> Iterator[Piece]:
        """Units `first` to `first + n` of the endless sequence, as pieces of blocks in order."""
        while n > 0:
            epoch, offset = divmod(first, self.n_units)
            blocks, ends = self._epoch(epoch)
            number = int(np.searchsorted(ends, offset, side="right"))
            block_start = int(ends[number - 1]) if number else 0
            take = min(n, int(ends[number]) - offset)
            yield Piece(blocks[number], offset - block_start, offset - block_start + take)
            first += take
            n -= take

    def within(self, block: Block) -> np.ndarray:
        """The block's units in their shuffled order: indices into its units in storage order."""
        n_units = int(self.units_of_chunk[list(block.chunks)].sum())
        # Block numbers count from 1 here: a seed sequence takes a missing last number for 0, and
        # `_plan_epoch` has none.
        return permutation(n_units, self.seed, block.epoch, 1 + block.number)


def expected_groups(n_groups: int, group_size: int, n_drawn: int) -> float:
    """Expected number of equal groups that a uniform draw of `n_drawn` members without replacement touches.

    Hypergeometric: `n_groups * (1 - C(N - group_size, n_drawn) / C(N, n_drawn))` for N members in all.
    """
    n_members = n_groups * group_size
    if n_drawn > n_members - group_size:
        return float(n_groups)
    log_missed = (
        math.lgamma(n_members - group_size + 1)
        - math.lgamma(n_members - group_size - n_drawn + 1)
        - math.lgamma(n_members + 1)
        + math.lgamma(n_members - n_drawn + 1)
    )
    return n_groups * -math.expm1(log_missed)
