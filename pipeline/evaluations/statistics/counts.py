"""The counts and sums per latent over one part of the images, which the evaluation `statistics` computes.

`statistics.merge` adds them over parts, and `statistics.tables` computes the columns from the totals. The
result is deterministic: sums run over the images of a part in a fixed order, and over the parts in the order
of their numbers. Dense blocks are counted token by token, sparse ones entry by entry, in the same order, so
that equal latents give equal bytes.

Shapes: B images of T tokens, S latents, k top images. A *firing* is one image on which one latent is above
0 on at least one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from patchsae.pipeline.saes.sparse.latents import DenseLatents, Latents, SparseLatents

# The histogram of activations covers 2^-14 to 2^10 with 16 bins of equal width per octave. The number of a
# bin is the leading bits of the float32 (exponent and 4 bits of the mantissa), so one shift finds it.
BINS_PER_OCTAVE = 16
_MANTISSA_SHIFT = 23 - 4
FIRST_OCTAVE, _N_OCTAVES = -14, 24
N_BINS = BINS_PER_OCTAVE * _N_OCTAVES
_FIRST_BIN = (127 + FIRST_OCTAVE) << 4
RELATIVE_ERROR = 1 / (2 * BINS_PER_OCTAVE)
"""Largest relative error if a value is taken to be the middle of its bin, for values inside the range."""

_BUFFERED_IMAGES = 4_000_000


@dataclass(frozen=True)
class Firings:
    """The P firings of a block of images, ordered by image and then by latent."""

    slot: np.ndarray  # [P] which image of the block
    latent: np.ndarray  # [P]
    total: np.ndarray  # [P] float64: sum over the image's tokens
    n_tokens: np.ndarray  # [P] tokens above 0
    n_above: np.ndarray  # [P] tokens above tau
    peak: np.ndarray  # [P] float32: largest over tokens
    token: np.ndarray  # [P] first token at which it is reached

    @classmethod
    def of(cls, latents: Latents, tokens_per_image: int, tau: float) -> Firings:
        """The firings of a block of whole images. `tau`: the threshold of `n_above`."""
        if isinstance(latents, DenseLatents):
            images = latents.value.cpu().numpy().reshape(-1, tokens_per_image, latents.value.shape[1])
            parts = [cls._of_image(slot, f, np.float32(tau)) for slot, f in enumerate(images)]
            return cls(
                **{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)}
            )
        assert isinstance(latents, SparseLatents)
        return cls._of_entries(latents, tokens_per_image, tau)

    @classmethod
    def _of_image(cls, slot: int, f: np.ndarray, tau: np.float32) -> Firings:
        """Those of one image, from its dense latents f [T, S]: a row at a time, which stays in the cache."""
        total, peak = np.zeros(f.shape[1]), np.zeros(f.shape[1], np.float32)
        n_tokens, n_above, token = np.zeros((3, f.shape[1]), np.int32)
        for i, row in enumerate(f):
            total += row
            n_tokens += row > 0
            n_above += row > tau
            np.copyto(token, i, where=row > peak)
            np.maximum(peak, row, out=peak)
        fired = np.flatnonzero(n_tokens)
        return cls(
            slot=np.full(len(fired), slot),
            latent=fired,
            total=total[fired],
            n_tokens=n_tokens[fired].astype(np.int64),
            n_above=n_above[fired].astype(np.int64),
            peak=peak[fired],
            token=token[fired],
        )

    @classmethod
    def _of_entries(cls, latents: SparseLatents, tokens_per_image: int, tau: float) -> Firings:
        n_slots = latents.n_tokens // tokens_per_image
        size = n_slots * latents.n_latents
        row = np.repeat(np.arange(latents.n_tokens), np.diff(latents.offsets.cpu().numpy()))
        value = latents.value.cpu().numpy()
        slot = row // tokens_per_image
        cell = slot * latents.n_latents + latents.latent.cpu().numpy()
        n_tokens = np.bincount(cell, minlength=size)
        fired = np.flatnonzero(n_tokens)
        peak = np.zeros(size, np.float32)
        np.maximum.at(peak, cell, value)
        is_peak = value == peak[cell]
        token = np.full(size, tokens_per_image, np.int32)
        np.minimum.at(token, cell[is_peak], (row - slot * tokens_per_image)[is_peak].astype(np.int32))
        return cls(
            slot=fired // latents.n_latents,
            latent=fired % latents.n_latents,
            total=np.bincount(cell, value, minlength=size)[fired],
            n_tokens=n_tokens[fired],
            n_above=np.bincount(cell[value > np.float32(tau)], minlength=size)[fired],
            peak=peak[fired],
            token=token[fired],
        )


@dataclass
class LatentSums:
    """Sums over images, one number per latent: arrays [S]."""

    n_images: np.ndarray  # int64: firings
    mean_sum: np.ndarray  # float64: sum over images of the mean over tokens
    n_tokens: np.ndarray  # int64: tokens above 0
    n_above: np.ndarray  # int64: tokens above tau
    token_sum: np.ndarray  # float64: sum over tokens
    peak: np.ndarray  # float32: largest over tokens

    @classmethod
    def zeros(cls, n_latents: int) -> LatentSums:
        kinds = {"mean_sum": np.float64, "token_sum": np.float64, "peak": np.float32}
        return cls(**{f.name: np.zeros(n_latents, kinds.get(f.name, np.int64)) for f in fields(cls)})

    def add(self, firings: Firings, tokens_per_image: int) -> None:
        latent, size = firings.latent, len(self.n_images)
        self.n_images += np.bincount(latent, minlength=size)
        totals = np.bincount(latent, firings.total, minlength=size)
        self.token_sum += totals
        self.mean_sum += totals / tokens_per_image
        self.n_tokens += np.bincount(latent, firings.n_tokens, minlength=size).astype(np.int64)
        self.n_above += np.bincount(latent, firings.n_above, minlength=size).astype(np.int64)
        np.maximum.at(self.peak, latent, firings.peak)

    def merge(self, other: LatentSums) -> None:
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            (np.maximum if f.name == "peak" else np.add)(mine, theirs, out=mine)


def bins_of(value: np.ndarray) -> np.ndarray:
    """The histogram bins of positive float32 values. Values out of range go to the first or the last bin."""
    return np.clip((value.view(np.int32) >> _MANTISSA_SHIFT) - _FIRST_BIN, 0, N_BINS - 1)


def bin_middles() -> np.ndarray:
    """The middle of every bin: float64 [N_BINS]."""
    octave, step = np.divmod(np.arange(N_BINS), BINS_PER_OCTAVE)
    return 2.0 ** (FIRST_OCTAVE + octave) * (1 + (step + 0.5) / BINS_PER_OCTAVE)


@dataclass
class TopImages:
    """For every latent, the k images with the largest token mean. Of ties the lower image id comes first."""

    n_latents: int
    k: int
    _kept: list[dict[str, np.ndarray]] = field(default_factory=list)
    _n_buffered: int = 0

    COLUMNS = ("latent", "activation", "image", "token", "peak", "label")

    def __post_init__(self) -> None:
        self._least = np.zeros(self.n_latents, np.float32)

    def add(self, columns: dict[str, np.ndarray]) -> None:
        """Adds candidates: one array per name in `COLUMNS`, all of one length."""
        chance = columns["activation"] >= self._least[columns["latent"]]
        self._kept.append({name: columns[name][chance] for name in self.COLUMNS})
        self._n_buffered += int(chance.sum())
        if self._n_buffered > _BUFFERED_IMAGES:
            self.best()

    def best(self) -> dict[str, np.ndarray]:
        """The top images so far, by `COLUMNS`, ordered by latent and then by rank."""
        if not self._kept:
            return {name: np.zeros(0, np.int32) for name in self.COLUMNS}
        every = {name: np.concatenate([kept[name] for kept in self._kept]) for name in self.COLUMNS}
        order = np.lexsort((every["image"], -every["activation"], every["latent"]))
        ordered = every["latent"][order]
        rank = np.arange(len(order)) - np.searchsorted(ordered, ordered)
        order = order[rank < self.k]
        best = {name: values[order] for name, values in every.items()}
        is_full = rank[rank < self.k] == self.k - 1
        self._least[best["latent"][is_full]] = best["activation"][is_full]
        self._kept, self._n_buffered = [best], 0
        return best


class PartCounts:
    """Everything that is counted over one part of the images."""

    def __init__(self, n_latents: int, k: int) -> None:
        self.n_latents = n_latents
        self.sums = LatentSums.zeros(n_latents)
        self.histogram = np.zeros(n_latents * N_BINS, np.int32)
        self.top = TopImages(n_latents, k)
        self._labels: list[int] = []
        self._class_rows: list[dict[str, np.ndarray]] = []
        self._open: list[tuple[np.ndarray, ...]] = []
        self._open_label = -1

    def add(
        self,
        latents: Latents,
        images: Sequence[int] | np.ndarray,
        labels: np.ndarray,
        tau: float,
        first_token: int = 0,
        again: bool = False,
    ) -> None:
        """Adds a block of whole images.

        `images` are their row numbers, `labels` their class ids, and `first_token` is the position of the
        first token of `latents`. The images of a class must be consecutive, over all blocks of the part. With
        `again` the images are counted for their classes alone, since they came before with another class.
        """
        tokens_per_image = latents.n_tokens // len(images)
        firings = Firings.of(latents, tokens_per_image, tau)
        mean = firings.total / tokens_per_image
        if not again:
            self._count_values(latents)
            self.sums.add(firings, tokens_per_image)
            self.top.add(
                {
                    "latent": firings.latent.astype(np.int32),
                    "activation": mean.astype(np.float32),
                    "image": np.asarray(images, np.int64)[firings.slot],
                    "token": firings.token + np.int32(first_token),
                    "peak": firings.peak,
                    "label": labels[firings.slot].astype(np.int32),
                }
            )
        ends = np.searchsorted(firings.slot, np.arange(len(images) + 1))
        for slot, label in enumerate(labels):
            if label != self._open_label:
                self._close_class()
                self._open_label = int(label)
            here = slice(ends[slot], ends[slot + 1])
            self._open.append((firings.latent[here], firings.n_above[here], mean[here]))

    def _count_values(self, latents: Latents) -> None:
        """Counts the values above 0 in the histogram."""
        value = latents.value.cpu().numpy()
        if isinstance(latents, SparseLatents):
            self._add_to_bins(latents.latent.cpu().numpy(), value)
        else:
            for row in value:
                latent = np.flatnonzero(row)
                self._add_to_bins(latent, row[latent])

    def _add_to_bins(self, latent: np.ndarray, value: np.ndarray) -> None:
        bins = latent * np.int64(N_BINS) + bins_of(value)
        # With an array of ones, `np.add.at` is thirty times as fast as with the number 1.
        np.add.at(self.histogram, bins, np.ones(len(bins), np.int32))

    def _close_class(self) -> None:
        if self._open:
            latent, n_above, mean = (np.concatenate(column) for column in zip(*self._open, strict=True))
            n_images = np.bincount(latent, minlength=self.n_latents)
            fired = np.flatnonzero(n_images)
            self._labels.append(self._open_label)
            self._class_rows.append(
                {
                    "latent": fired.astype(np.int32),
                    "n_images": n_images[fired],
                    "n_above": np.bincount(latent, n_above, self.n_latents)[fired].astype(np.int64),
                    "mean_sum": np.bincount(latent, mean, self.n_latents)[fired].astype(np.float32),
                }
            )
        self._open = []

    def arrays(self) -> dict[str, np.ndarray]:
        """The counts as flat arrays, which are written to scratch.

        The rows of class `classes.label[i]` are `classes.ends[i]` to `classes.ends[i + 1]`.
        """
        self._close_class()
        self._open_label = -1
        bins = np.flatnonzero(self.histogram)
        classes = {
            name: np.concatenate([rows[name] for rows in self._class_rows]) for name in self._class_rows[0]
        }
        # Nearly all bytes of a part are these rows. Most counts fit into one byte, so the smallest type is
        # used.
        for name in ("n_images", "n_above"):
            classes[name] = classes[name].astype(np.min_scalar_type(classes[name].max(initial=0)))
        n_rows = [0, *(len(rows["latent"]) for rows in self._class_rows)]
        return {
            **{f"sums.{f.name}": getattr(self.sums, f.name) for f in fields(LatentSums)},
            "histogram.bin": bins.astype(np.int32),
            "histogram.n": self.histogram[bins],
            **{f"top.{name}": values for name, values in self.top.best().items()},
            "classes.label": np.array(self._labels, np.int32),
            "classes.ends": np.cumsum(n_rows),
            **{f"classes.{name}": values for name, values in classes.items()},
        }
