"""What the evaluations `masking` and `remapping` refuse, before it is run where that shows, and then with the same sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from patchsae.pipeline.evaluations.masking.settings import MaskingSettings
from patchsae.pipeline.images.tables import Classes, label_sets_of
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError


def refuse_several_classes(images: Artifact, rows: np.ndarray, evaluation: str = "masking") -> None:
    """Raises UserError if one of the images is of several classes."""
    n_several = int((label_sets_of(images).counts(rows) > 1).sum())
    if n_several:
        raise UserError(
            f"{evaluation}: {n_several:,} of the {len(rows):,} images are of several classes, and accuracy is counted by "
            "the class of an image; choose a split whose images have one."
        )


def refuse_selections(
    settings: MaskingSettings,
    here: Sequence[str] | None,
    there: Sequence[Sequence[str] | None],
    task: np.ndarray | None,
    classes: Classes | None,
    counted: Sequence[Classes | None],
) -> None:
    """Raises UserError if latents are selected by classes that one of the statistics does not have or count.

    `here` are the names of the classes, and `there` those of each of the statistics; None where they are not known.
    """
    if chosen := settings.selections_by_class():
        for names, one in zip(there, counted, strict=True):
            refuse_other_classes(here, names, chosen)
            if here is not None and task is not None:
                refuse_uncounted(here, task, classes, one, chosen)


def refuse_other_classes(
    here: Sequence[str] | None, there: Sequence[str] | None, selections: Sequence[str]
) -> None:
    """Raises UserError if both are known and differ."""
    if here is not None and there is not None and list(here) != list(there):
        raise UserError(
            f"masking: the dataset has other classes ({len(here)}) than the one its "
            f"latents are selected on ({len(there)}); make statistics of this dataset, or leave "
            f"{_listed(selections)} out of `selections`."
        )


def refuse_uncounted(
    names: Sequence[str],
    task: np.ndarray,
    classes: Classes | None,
    counted: Classes | None,
    selections: Sequence[str],
) -> None:
    """Raises UserError if latents are selected by classes that the statistics do not count.

    `task` are the classes that images are classified among, and `classes` and `counted` what the configs of masking
    and of its statistics say. The latents of a class without counts would be those with the lowest ids.
    """
    if counted is None or counted == classes:
        return
    if isinstance(counted, tuple):
        known = {i for i, name in enumerate(names) if i in counted or name in counted}
        asked = list(range(len(names))) if classes is None else task.tolist()
        if isinstance(classes, tuple):
            asked = [i for i, name in enumerate(names) if i in classes or name in classes]
        if not known or set(asked) <= known:
            return  # Statistics of no class there is are refused themselves.
    said = "all classes" if classes is None else f"`classes: {_written(classes)}`"
    raise UserError(
        f"masking: images of {said} are masked by {_listed(selections)}, and the statistics count the classes "
        f"`{_written(counted)}` alone; name statistics of the same "
        "classes, or of all."
    )


def _written(classes: Classes) -> str:
    return classes if isinstance(classes, str) else f"[{', '.join(map(str, classes))}]"


def _listed(selections: Sequence[str]) -> str:
    return " and ".join(f"`{selection}`" for selection in selections)
