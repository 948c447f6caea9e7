"""The two backbones of the evaluation `remapping`: the roles of their artifacts, and their counts by class.

The artifacts of a side have its name in front of their role: `before activations`. The SAE and the images are shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from patchsae.pipeline.evaluations.statistics.class_counts import class_counts
from patchsae.pipeline.evaluations.statistics.rankings import by_count
from patchsae.storage.artifacts import Artifact

SIDES = ("before", "after")
_SHARED = ("images", "sae")
V = TypeVar("V")


def side_of(inputs: Mapping[str, V], side: str) -> dict[str, V]:
    """The inputs of one side, by the roles that other evaluations give them."""
    mine = {role.removeprefix(f"{side} "): one for role, one in inputs.items() if role.startswith(f"{side} ")}
    return {**mine, **{role: inputs[role] for role in _SHARED}}


@dataclass(frozen=True)
class ClassCounts:
    """What the statistics of both sides count of one class: [2, S] each, before and after."""

    n_tokens: np.ndarray  # int64: tokens above tau, a_c[s]
    n_images: np.ndarray  # int64: images that fire the latent


def counts_of_sides(
    statistics: Mapping[str, Artifact], classes: np.ndarray, n_latents: int
) -> Iterator[tuple[int, ClassCounts]]:
    """The counts of each of the ascending `classes`, from the statistics of each side."""
    sides = [class_counts(statistics[side], classes, n_latents, ["n_tokens", "n_images"]) for side in SIDES]
    for (label, before), (_, after) in zip(*sides, strict=True):
        yield label, ClassCounts(*np.stack([before, after], axis=1))


def candidates(counts: ClassCounts, n: int) -> np.ndarray:
    """The n latents with the largest count on either side, largest first; of ties the lower id: int32 [n]."""
    return by_count(counts.n_tokens.max(axis=0), n)
