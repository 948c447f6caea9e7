"""`RemappingSettings`: the fields of the evaluation `remapping` beside those that name something, and its tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from patchsae.pipeline.evaluations.ks import K, Ks
from patchsae.pipeline.images.tables import Classes, class_names_of, task_classes
from patchsae.storage.artifacts import Artifact

_CANDIDATES = 2048
_PER_LOWER = 4


class RemappingSettings(Ks):
    """How groups of latents are made, and what is measured beside them."""

    upper: Annotated[int, Field(ge=1)] = 50
    """U is this largest of the counts of both backbones together, for each class: a latent with U or more is high."""
    lower: Annotated[int, Field(ge=1)] = 100
    """L is this largest of them: a latent with fewer than L is low."""
    taus: tuple[Annotated[float, Field(ge=0)], ...] = (0.1, 0.4)
    """Other thresholds than the statistics' tau with which groups are made, for the table `remapping_sensitivity`."""
    bounds: tuple[tuple[int, int], ...] = ((25, 50), (50, 100), (50, 200), (100, 200))
    """Pairs of `upper` and `lower` with which groups are made, for the table `remapping_sensitivity`."""
    active_in: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A latent is active for a class if it fires on at least this share of the images of the class."""
    n_correlated: Annotated[int, Field(ge=2)] = 1000
    """Counts of so many latents, those with the largest ones, are correlated before and after."""
    ks: tuple[K, ...] = (1, 2, 5, 10, 50, 100, 1000, "all")
    """How many latents are kept for the table `remapping_predictions`; all others are switched off."""
    ranked_by: Literal["before", "after"] = "before"
    """Whose counts rank the latents of a class that are kept. Both backbones keep the same latents."""
    n_bootstrap: Annotated[int, Field(ge=0)] = 200
    """Number of resamples of the images of every class, for the intervals; none if 0."""

    @field_validator("taus")
    @classmethod
    def _each_once(cls, taus: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(taus)))

    @model_validator(mode="after")
    def _lower_is_not_above_upper(self) -> RemappingSettings:
        for upper, lower in ((self.upper, self.lower), *self.bounds):
            if not 1 <= upper <= lower:
                raise ValueError(
                    f"the {lower}-th largest count is not below the {upper}-th largest; give an upper of 1 or more and "
                    "a lower that is at least as large"
                )
        return self

    @property
    def n_resampled(self) -> int:
        """Latents of a class, those with the largest counts, whose counts are kept image by image for resamples."""
        return _PER_LOWER * self.lower

    def n_candidates(self, n_latents: int) -> int:
        """Latents of a class, those with the largest counts, that are counted with other taus."""
        largest = max(lower for _, lower in ((self.upper, self.lower), *self.bounds))
        return min(n_latents, max(_CANDIDATES, _PER_LOWER * largest))


@dataclass(frozen=True)
class Task:
    """Classes that have a row of their own, and the classes that their images are classified among."""

    name: str
    classes: np.ndarray
    among: np.ndarray


def tasks_of(images: Artifact, counted: Classes | None) -> list[Task]:
    """The tasks of statistics that count `counted`: all classes and their halves, one half, or a list.

    Raises UserError if a half is asked for and the dataset has one class only.
    """
    if isinstance(counted, str):
        ids = task_classes(images, counted)
        return [Task(counted, ids, ids)]
    every = np.arange(len(class_names_of(images)))
    if counted is not None:
        names = class_names_of(images)
        listed = np.array([i for i, name in enumerate(names) if i in counted or name in counted])
        return [Task("listed", listed, every)]
    tasks = [Task("all", every, every)]
    if len(every) > 1:
        for half in ("base", "novel"):
            ids = task_classes(images, half)
            tasks.append(Task(half, ids, ids))
    return tasks
