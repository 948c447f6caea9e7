"""Reads the table `class_latents` of an evaluation `statistics`, class by class.

Shapes: S latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from patchsae.storage.artifacts import Artifact

_CLASSES_AT_ONCE = 64


def class_counts(
    statistics: Artifact, classes: np.ndarray, n_latents: int, columns: Sequence[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """(class, what each of the `columns` counts of every latent, int64 [len(columns), S]) of the ascending `classes`.

    A column is `n_tokens` (a_c[s], tokens above tau) or `n_images` (images that fire the latent). The table is read
    some classes at a time, since it may be large.
    """
    table = statistics.scan("class_latents").select("class", "latent", *columns)
    for start in range(0, len(classes), _CLASSES_AT_ONCE):
        some = classes[start : start + _CLASSES_AT_ONCE]
        rows = table.filter(pl.col("class").is_between(int(some[0]), int(some[-1]))).collect()
        label, latent = rows["class"].to_numpy(), rows["latent"].to_numpy()
        counted = rows.select(columns).to_numpy().T
        for one in some.tolist():
            mine = label == one
            counts = np.zeros((len(columns), n_latents), np.int64)
            counts[:, latent[mine]] = counted[:, mine]
            yield one, counts
