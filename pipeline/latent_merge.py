"""Parts of the statistics put together, in the order of their numbers.

Whatever order they were computed in, sums of floats are added in one order, so the result is the same to the bit.
Shapes: S latents, C classes.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from pipeline.latent_counts import N_BINS, LatentSums, TopImages
from pipeline.latent_tables import CLASS_LATENTS
from storage import parts, tables
from storage.artifacts import Builder

# Classes are merged in groups whose class x latent table has at most this many cells (24 bytes each).
_CELLS = 16_000_000
COUNTS = "counts"


def merge_sums(out: Builder, n_parts: int, n_latents: int) -> tuple[LatentSums, np.ndarray]:
    """The sums over all parts, and the histogram [S, N_BINS] int64."""
    sums = LatentSums.zeros(n_latents)
    histogram = np.zeros(n_latents * N_BINS, np.int64)
    for part in range(n_parts):
        arrays = parts.PartArrays(out, COUNTS, part)
        sums.merge(LatentSums(**{f.name: arrays[f"sums.{f.name}"] for f in fields(LatentSums)}))
        histogram[arrays["histogram.bin"]] += arrays["histogram.n"]
    return sums, histogram.reshape(n_latents, N_BINS)


def merge_top(out: Builder, n_parts: int, n_latents: int, k: int) -> dict[str, np.ndarray]:
    """The reference images over all parts: columns of `TopImages`."""
    top = TopImages(n_latents, k)
    for part in range(n_parts):
        arrays = parts.PartArrays(out, COUNTS, part)
        top.add({name: arrays[f"top.{name}"] for name in TopImages.COLUMNS})
    return top.best()


def write_class_latents(out: Builder, n_parts: int, n_latents: int, n_classes: int) -> np.ndarray:
    """Writes `class_latents`, some classes at a time, and returns how many classes fire each latent: [S]."""
    n_firing = np.zeros(n_latents, np.int64)
    step = max(1, _CELLS // n_latents)
    starts = range(0, n_classes, step)
    for group, start in enumerate(starts):
        stop = min(start + step, n_classes)
        n_tokens = np.zeros((stop - start) * n_latents, np.int64)
        n_images = np.zeros_like(n_tokens)
        mean_sum = np.zeros(len(n_tokens))
        for part in range(n_parts):
            arrays = parts.PartArrays(out, COUNTS, part)
            label, ends = arrays["classes.label"], arrays["classes.ends"]
            first, last = np.searchsorted(label, [start, stop])
            rows = (int(ends[first]), int(ends[last]))
            if rows[0] == rows[1]:
                continue
            cell = np.repeat(label[first:last].astype(np.int64) - start, np.diff(ends[first : last + 1]))
            cell = cell * n_latents + arrays.rows("classes.latent", *rows)
            # A part names each class and latent once, so plain indexing adds everything.
            n_tokens[cell] += arrays.rows("classes.n_above", *rows)
            n_images[cell] += arrays.rows("classes.n_images", *rows)
            mean_sum[cell] += arrays.rows("classes.mean_sum", *rows)
        fired = np.flatnonzero(n_images)
        latent = fired % n_latents
        n_firing += np.bincount(latent, minlength=n_latents)
        path = tables.write(
            out,
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
        if len(starts) > 1:
            out.add(path)
    return n_firing
