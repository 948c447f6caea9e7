"""Merges the counts of all parts, which `statistics.counts` made, for the evaluation `statistics`.

Parts are added in the order of their numbers, whatever order they were computed in, so the sums of floats are
the same to the bit.

Shapes: S latents, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

import numpy as np

from patchsae.pipeline.core.progress import Bar
from patchsae.pipeline.evaluations.statistics.counts import N_BINS, LatentSums, TopImages
from patchsae.pipeline.evaluations.statistics.tables import CLASS_LATENTS
from patchsae.storage.artifacts import Builder
from patchsae.storage.scratch import ScratchArrays

# Classes are merged in groups, so that the table of classes x latents has at most this many cells of 24
# bytes.
_CELLS = 16_000_000


def merge_sums(parts: Iterable[ScratchArrays], n_latents: int) -> tuple[LatentSums, np.ndarray]:
    """The sums over all parts, and the histogram [S, N_BINS] int64."""
    sums = LatentSums.zeros(n_latents)
    histogram = np.zeros(n_latents * N_BINS, np.int64)
    for arrays in parts:
        sums.merge(LatentSums(**{f.name: arrays[f"sums.{f.name}"] for f in fields(LatentSums)}))
        histogram[arrays["histogram.bin"]] += arrays["histogram.n"]
    return sums, histogram.reshape(n_latents, N_BINS)


def merge_top(parts: Iterable[ScratchArrays], n_latents: int, k: int) -> dict[str, np.ndarray]:
    """The top images over all parts, as `TopImages.best` returns them."""
    top = TopImages(n_latents, k)
    for arrays in parts:
        top.add({name: arrays[f"top.{name}"] for name in TopImages.COLUMNS})
    return top.best()


def _classes_per_group(n_latents: int) -> int:
    return max(1, _CELLS // n_latents)


def n_class_groups(n_latents: int, n_classes: int) -> int:
    """How many times `write_class_latents` reads all parts."""
    return -(-n_classes // _classes_per_group(n_latents))


def write_class_latents(
    out: Builder, parts: Sequence[ScratchArrays], n_latents: int, n_classes: int, bar: Bar
) -> np.ndarray:
    """Writes the table `class_latents`, some classes at a time. `bar` is advanced with every part that is read.

    Returns the number of classes that fire each latent: int64 [S].
    """
    n_firing = np.zeros(n_latents, np.int64)
    step = _classes_per_group(n_latents)
    starts = range(0, n_classes, step)
    for group, start in enumerate(starts):
        stop = min(start + step, n_classes)
        n_tokens = np.zeros((stop - start) * n_latents, np.int64)
        n_images = np.zeros_like(n_tokens)
        mean_sum = np.zeros(len(n_tokens))
        for arrays in bar.over(parts):
            label, ends = arrays["classes.label"], arrays["classes.ends"]
            first, last = np.searchsorted(label, [start, stop])
            rows = (int(ends[first]), int(ends[last]))
            if rows[0] == rows[1]:
                continue
            cell = np.repeat(label[first:last].astype(np.int64) - start, np.diff(ends[first : last + 1]))
            cell = cell * n_latents + arrays.rows("classes.latent", *rows)
            # A part has one row per class and latent, so no cell occurs twice and plain indexing adds every
            # row.
            n_tokens[cell] += arrays.rows("classes.n_above", *rows)
            n_images[cell] += arrays.rows("classes.n_images", *rows)
            mean_sum[cell] += arrays.rows("classes.mean_sum", *rows)
        fired = np.flatnonzero(n_images)
        latent = fired % n_latents
        n_firing += np.bincount(latent, minlength=n_latents)
        out.write_table(
            CLASS_LATENTS,
            {
                "class": (fired // n_latents + start).astype(np.int32),
                "latent": latent.astype(np.int32),
                "n_tokens": n_tokens[fired],
                "n_images": n_images[fired],
                "mean_activation": (mean_sum[fired] / n_images[fired]).astype(np.float32),
            },
            part=group if len(starts) > 1 else None,
        )
    return n_firing
