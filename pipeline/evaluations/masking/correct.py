"""`Correct`: how many images each way of replacing activations leaves correct, summed over parts.

Shapes: C classes, A readings, n images, M rankings, k the number of `ks`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from patchsae.pipeline.evaluations.masking.classify import Outcomes
from patchsae.storage.scratch import ScratchArrays

_COUNTS = ("original", "reconstruction", "bias", "masked")
BITS = "bits"


@dataclass
class Correct:
    """The number of images of every class whose class, or attribute, is read correctly, for each way of replacing
    activations."""

    original: np.ndarray  # [A, C]
    reconstruction: np.ndarray  # [A, C]: all latents on
    bias: np.ndarray  # [bases, A, C]: all latents off
    masked: np.ndarray  # [M, 2 (on, off), k, A, C]
    _bits: list[np.ndarray] = field(default_factory=list, init=False)

    @classmethod
    def zeros(cls, n_rankings: int, n_ks: int, n_readings: int, n_classes: int, n_bases: int = 1) -> Correct:
        one = (n_readings, n_classes)
        shapes = (one, one, (n_bases, *one), (n_rankings, 2, n_ks, *one))
        return cls(**{name: np.zeros(shape, np.int64) for name, shape in zip(_COUNTS, shapes, strict=True)})

    def add(self, outcomes: Outcomes, labels: np.ndarray, keep: bool = False) -> None:
        """Adds a block of images, which are counted under `labels` [B]. `keep` keeps the outcome of every image."""
        for name in _COUNTS:
            counts, right = getattr(self, name), getattr(outcomes, name)
            for label in np.unique(labels):
                counts[..., label] += right[..., labels == label].sum(axis=-1)
        if keep:
            ways = [getattr(outcomes, name)[..., 0, :].reshape(-1, len(labels)) for name in _COUNTS]
            self._bits.append(np.concatenate(ways))

    def arrays(self) -> dict[str, np.ndarray]:
        counts = {name: getattr(self, name) for name in _COUNTS}
        kept = {BITS: np.packbits(np.concatenate(self._bits, axis=1), axis=1)} if self._bits else {}
        return {**counts, **kept}

    def merge(self, arrays: ScratchArrays) -> None:
        """Adds the counts of another part."""
        for name in _COUNTS:
            counts = getattr(self, name)
            counts += arrays[name]


class ByImage:
    """Whether the class of every image is read correctly: bool arrays [..., n], shaped as those of `Correct`."""

    def __init__(self, parts: Iterable[tuple[ScratchArrays, int]], like: Correct) -> None:
        """`parts` with their numbers of images."""
        every = np.concatenate(
            [np.unpackbits(arrays[BITS], axis=1, count=n).astype(bool) for arrays, n in parts], axis=1
        )
        shapes = [(), (), like.bias.shape[:1], like.masked.shape[:3]]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        self.original, self.reconstruction, self.bias, self.masked = (
            piece.reshape(*shape, every.shape[1])
            for piece, shape in zip(np.split(every, ends[:-1]), shapes, strict=True)
        )
