"""The table `masking` (counts, accuracies, intervals) and the summary of the evaluation `masking`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from patchsae.pipeline.evaluations.intervals import wilson_interval
from patchsae.storage.manifest import Summary
from patchsae.storage.tables import Column, TableSchema

_SUMMARY_K = 10

MASKING = TableSchema(
    "masking",
    "Zero-shot accuracy with the activations at the hook replaced by masked reconstructions: one row per "
    "selection, seed, mode, k and class, and one row with a null class for all images together.",
    (
        Column("split", pa.string(), "The split that was classified."),
        Column(
            "selection",
            pa.string(),
            "How the k latents were chosen on the statistics' split. `class`: most tokens above tau in the "
            "image's true class; `dataset`: most tokens above tau in the whole split; `random`: at random, "
            "the same for all images; `none`: rows without a selection. Of ties the lower id is chosen.",
        ),
        Column(
            "mode",
            pa.string(),
            "`on`: b_dec + sum over the k latents of f_s W_dec[s]; `off`: the reconstruction without that "
            "sum. With selection `none`: `original`: the activations; `reconstruction`: all latents on.",
        ),
        Column(
            "k",
            pa.int32(),
            "Number of selected latents, which is that of all latents if all are; null for `original`.",
            nullable=True,
        ),
        Column("class", pa.int32(), "Class id of the images of this row; null: all images.", nullable=True),
        Column("n", pa.int64(), "Number of images."),
        Column(
            "n_correct",
            pa.int64(),
            "Number of images whose largest logit over all classes is that of their label.",
        ),
        Column("accuracy", pa.float64(), "n_correct / n, from 0 to 1."),
        Column("ci_low", pa.float64(), "Lower end of the accuracy's 95 % Wilson interval."),
        Column("ci_high", pa.float64(), "Upper end of the accuracy's 95 % Wilson interval."),
        Column("seed", pa.int32(), "Seed of a random selection; null for other selections.", nullable=True),
        Column("class_name", pa.string(), "Name of the class; null if the class is null.", nullable=True),
        Column(
            "class_mean_accuracy",
            pa.float64(),
            "In rows with a null class: the unweighted mean of the accuracies of all classes that have "
            "images, as in the paper's released code (spec 5.3); null in other rows.",
            nullable=True,
        ),
    ),
)


@dataclass(frozen=True)
class Condition:
    """One way of replacing activations, and the number of correctly classified images of each class."""

    selection: str
    mode: str
    k: int | None
    seed: int | None
    n_correct: np.ndarray  # [C]


def masking_columns(
    conditions: Sequence[Condition], split: str, n_images: np.ndarray, class_names: list[str]
) -> dict[str, Any]:
    """The columns of the table. `n_images` [C]: images of each class; classes without images have no rows."""
    present = np.flatnonzero(n_images)
    names: list[str | None] = [*(class_names[label] for label in present), None]
    labels: list[int | None] = [*present.tolist(), None]
    n = np.append(n_images[present], n_images.sum())
    columns: dict[str, list[Any]] = {column.name: [] for column in MASKING.columns}
    for one in conditions:
        n_correct = np.append(one.n_correct[present], one.n_correct.sum())
        accuracy = n_correct / n
        low, high = wilson_interval(n_correct, n)
        rows: dict[str, list[Any]] = {
            "split": [split] * len(n),
            "selection": [one.selection] * len(n),
            "mode": [one.mode] * len(n),
            "k": [one.k] * len(n),
            "class": labels,
            "n": n.tolist(),
            "n_correct": n_correct.tolist(),
            "accuracy": accuracy.tolist(),
            "ci_low": low.tolist(),
            "ci_high": high.tolist(),
            "seed": [one.seed] * len(n),
            "class_name": names,
            "class_mean_accuracy": [*[None] * len(present), accuracy[:-1].mean()],
        }
        for name, values in rows.items():
            columns[name] += values
    return columns


def masking_summary(conditions: Sequence[Condition], n_images: np.ndarray) -> Summary:
    """Accuracies over all images: original, reconstruction, and every masking at the k nearest to 10.

    The last are named `<mode>_<selection>_k<k>`. Random selections are averaged over their seeds.
    """
    n = int(n_images.sum())
    plain = {one.mode: float(one.n_correct.sum() / n) for one in conditions if one.selection == "none"}
    summary: Summary = {
        "n_images": n,
        "zero_shot_accuracy": plain["original"],
        "accuracy_all": plain["reconstruction"],
    }
    n_latents = next(one.k for one in conditions if one.mode == "reconstruction")
    ks = {one.k for one in conditions if one.selection != "none" and one.k not in (None, n_latents)}
    if ks:
        k = min(sorted(ks), key=lambda k: abs(k - _SUMMARY_K))
        found: dict[str, list[float]] = {}
        for one in conditions:
            if one.k == k and one.selection != "none":
                found.setdefault(f"{one.mode}_{one.selection}_k{k}", []).append(one.n_correct.sum() / n)
        summary |= {name: float(np.mean(values)) for name, values in found.items()}
    return summary
