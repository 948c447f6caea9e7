"""The table `masking`: counts, accuracies and their intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.mask_sweep import Correct
from storage.artifacts import Summary
from storage.tables import Column, TableSchema

if TYPE_CHECKING:
    from pipeline.evaluations.masking import MaskingStageConfig

# The 97.5 % point of the normal distribution.
_Z = 1.959963984540054
_SUMMARY_K = 10

MASKING = TableSchema(
    "masking",
    "Zero-shot accuracy with the activations at the hook replaced by masked reconstructions: one row per selection, "
    "seed, mode, k and class, and one of class null for all images.",
    (
        Column("dataset", pa.string(), "Name of the dataset in its experiment."),
        Column("split", pa.string(), "Split that was classified."),
        Column(
            "selection",
            pa.string(),
            "How the k latents were chosen on the statistics' split: `class` (most tokens above tau in the image's true "
            "class), `dataset` (in the whole split), `random` (the same for all images); `none` for the rows without a "
            "selection. Ties: the lower latent id.",
        ),
        Column(
            "mode",
            pa.string(),
            "`on`: b_dec + sum over the k latents of f_s W_dec[s]; `off`: the reconstruction without those k; with "
            "selection `none`, `original`: the activations themselves, and `reconstruction`: all latents on.",
        ),
        Column(
            "k",
            pa.int32(),
            "Latents selected; the number of latents for all, null for `original`.",
            nullable=True,
        ),
        Column("class", pa.int32(), "Class id of the images of this row; null: all images.", nullable=True),
        Column("n", pa.int64(), "Images."),
        Column(
            "n_correct", pa.int64(), "Images whose largest logit over all classes is that of their label."
        ),
        Column("accuracy", pa.float64(), "n_correct / n, from 0 to 1."),
        Column(
            "ci_low", pa.float64(), "Lower end of the 95 % Wilson interval of the accuracy over these images."
        ),
        Column("ci_high", pa.float64(), "Upper end of that interval."),
        Column("seed", pa.int32(), "Seed of a random selection, else null.", nullable=True),
        Column("class_name", pa.string(), "Name of the class; null where class is.", nullable=True),
        Column(
            "class_mean_accuracy",
            pa.float64(),
            "In rows of class null: the unweighted mean of accuracy over the classes that have images, the "
            "reference's number (spec 5.3); null elsewhere.",
            nullable=True,
        ),
    ),
)


def wilson_interval(n_correct: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % score interval of a share; `n` > 0. E. B. Wilson, JASA 22 (1927)."""
    share, z2 = n_correct / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    # Exact where rounding would leave the ends a hair inside.
    return np.where(n_correct == 0, 0.0, middle - half), np.where(n_correct == n, 1.0, middle + half)


@dataclass(frozen=True)
class Condition:
    """One way of replacing activations, and how many images of each class came out right."""

    selection: str
    mode: str
    k: int | None
    seed: int | None
    n_correct: np.ndarray  # [C]


def conditions(config: MaskingStageConfig, correct: Correct, n_latents: int) -> Iterator[Condition]:
    """Every condition, in the order of the table."""
    yield Condition("none", "original", None, None, correct.original)
    yield Condition("none", "reconstruction", n_latents, None, correct.reconstruction)
    # Whatever the ranking, all latents on is the reconstruction, and all off leaves the bias.
    everything = {"on": correct.reconstruction, "off": correct.bias}
    for (selection, seed), masked in zip(config.rankings(), correct.masked, strict=True):
        for mode in config.masking.modes:
            of_mode = masked[("on", "off").index(mode)]
            for k, n_correct in zip(config.finite_ks(n_latents), of_mode, strict=True):
                yield Condition(selection, mode, int(k), seed, n_correct)
            if config.includes_all(n_latents):
                yield Condition(selection, mode, n_latents, seed, everything[mode])


def masking_columns(
    config: MaskingStageConfig,
    correct: Correct,
    n_images: np.ndarray,
    class_names: list[str],
    n_latents: int,
) -> dict[str, Any]:
    """The columns of the table. `n_images` [C]: images of each class; classes without any have no rows."""
    present = np.flatnonzero(n_images)
    names: list[str | None] = [*(class_names[label] for label in present), None]
    labels: list[int | None] = [*present.tolist(), None]
    n = np.append(n_images[present], n_images.sum())
    columns: dict[str, list[Any]] = {column.name: [] for column in MASKING.columns}
    for one in conditions(config, correct, n_latents):
        n_correct = np.append(one.n_correct[present], one.n_correct.sum())
        accuracy = n_correct / n
        low, high = wilson_interval(n_correct, n)
        rows: dict[str, list[Any]] = {
            "dataset": [config.dataset_name] * len(n),
            "split": [config.masking.split] * len(n),
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


def masking_summary(
    config: MaskingStageConfig, correct: Correct, n_images: np.ndarray, n_latents: int
) -> Summary:
    """Accuracies over all images: original, reconstruction, and `<mode>_<selection>_k<k>` at the k nearest to 10.

    Random selections are averaged over their seeds.
    """
    n = int(n_images.sum())
    summary: Summary = {
        "n_images": n,
        "zero_shot_accuracy": float(correct.original.sum() / n),
        "accuracy_all": float(correct.reconstruction.sum() / n),
    }
    ks = config.finite_ks(n_latents)
    if len(ks):
        k = int(ks[np.abs(ks - _SUMMARY_K).argmin()])
        found: dict[str, list[float]] = {}
        for one in conditions(config, correct, n_latents):
            if one.k == k and one.selection != "none":
                found.setdefault(f"{one.mode}_{one.selection}_k{k}", []).append(one.n_correct.sum() / n)
        summary |= {name: float(np.mean(values)) for name, values in found.items()}
    return summary
