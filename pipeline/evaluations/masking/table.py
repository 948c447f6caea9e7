"""The table `masking` (counts, accuracies, intervals) and the summary of the evaluation `masking`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from patchsae.pipeline.evaluations.intervals import over_seeds, wilson_interval
from patchsae.pipeline.evaluations.masking.bootstrap import BOOTSTRAP
from patchsae.storage.manifest import Summary
from patchsae.storage.tables import Column, TableSchema

_SUMMARY_K = 10
_INTERVAL = (
    "{} end of the accuracy's 95 % Wilson interval. That of a random selection is for the accuracy expected of any "
    "seed, so it is wider by what varies between the seeds; with one seed it is that of the images alone."
)
_OF_MEAN = "{} end of the 95 % interval of seeds_accuracy, over images and seeds, for random selections; ci_{} for others."

_MASKING = TableSchema(
    "masking",
    "Zero-shot accuracy with the activations at the hook replaced by masked reconstructions: one row per "
    "selection, seed, mode, k and class, and one row with a null class for all images together. Every attribute that "
    "was read beside the class has three columns, which end in its name, such as `colour`.",
    (
        Column("split", pa.string(), "The split that was classified."),
        Column(
            "selection",
            pa.string(),
            "How the k latents were chosen on the statistics' split. `class`: most tokens above tau in the "
            "image's true class, as in the paper; `class_selective`: largest a_c[s] (a_c[s] / a_D[s] - 1 / C), where "
            "a_c[s] are these tokens, a_D[s] those in the whole split and C is the number of classes; `prediction` and "
            "`prediction_selective`: as these two, of the class that the original activations are classified as; "
            "`dataset`: most "
            "tokens above tau in the whole split; `random`: at random, the same for all images, and with random_pool "
            "`alive` dead latents after all others; `none`: rows without a selection. Of ties the lower id is chosen.",
        ),
        Column(
            "mode",
            pa.string(),
            "`on`: b_dec + sum over the k latents of f_s W_dec[s]; `off`: the reconstruction without that "
            "sum. A latent that is off is 0, or its mean with `ablation: mean`, and with `error: kept` what the SAE leaves "
            "of a token, x - x_hat, is added. With selection `none`: `original`: the activations; `reconstruction`: all latents on.",
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
            "Number of images whose largest logit is that of their label: over all classes of the dataset, or with "
            "`classes: base` or `novel` over those of this half.",
        ),
        Column("accuracy", pa.float64(), "n_correct / n, from 0 to 1."),
        Column("ci_low", pa.float64(), _INTERVAL.format("Lower")),
        Column("ci_high", pa.float64(), _INTERVAL.format("Upper")),
        Column("seed", pa.int32(), "Seed of a random selection; null for other selections.", nullable=True),
        Column("class_name", pa.string(), "Name of the class; null if the class is null.", nullable=True),
        Column(
            "class_mean_accuracy",
            pa.float64(),
            "In rows with a null class: the unweighted mean of the accuracies of all classes that have "
            "images, as in the paper's released code (spec 5.3); null in other rows.",
            nullable=True,
        ),
        Column(
            "attribute",
            pa.string(),
            "Name of the attribute whose values are the classes, such as `shape`; null if the dataset has no name "
            "for it. What a mask does to other attributes is in columns that end in their names.",
            nullable=True,
        ),
        Column(
            "seeds_accuracy",
            pa.float64(),
            "Mean over the seeds of a random selection of the accuracies of these images, the same in the row of "
            "every seed; accuracy for other selections.",
        ),
        Column("seeds_ci_low", pa.float64(), _OF_MEAN.format("Lower", "low")),
        Column("seeds_ci_high", pa.float64(), _OF_MEAN.format("Upper", "high")),
    ),
)


_SELECTED_ON = Column(
    "statistics_key",
    pa.string(),
    "Key of the statistics whose counts ranked the latents, which is the column `key` of `artifacts`; null for random "
    "latents and for rows without a selection. Only an evaluation of several statistics has this column.",
    nullable=True,
)


def masking_schema(
    attributes: Sequence[str], n_statistics: int = 1, has_bootstrap: bool = False
) -> TableSchema:
    """The table `masking`, with columns for the attributes that were read beside the class, and for what else the
    config asks for."""
    of_attributes = (
        column
        for name in attributes
        for column in (
            Column(
                f"accuracy_{name}",
                pa.float64(),
                f"Share of these images whose {name} has the largest logit among the values of that attribute (if an "
                f"image has n of them: whose n values have the n largest): what the mask leaves of the {name}. Read "
                "off the same features as the class.",
            ),
            Column(f"ci_low_{name}", pa.float64(), f"As ci_low, for accuracy_{name}."),
            Column(f"ci_high_{name}", pa.float64(), f"As ci_high, for accuracy_{name}."),
        )
    )
    return TableSchema(
        _MASKING.name,
        _MASKING.description,
        (
            *_MASKING.columns,
            *of_attributes,
            *((_SELECTED_ON,) if n_statistics > 1 else ()),
            *(BOOTSTRAP if has_bootstrap else ()),
        ),
    )


@dataclass(frozen=True)
class Condition:
    """One way of replacing activations, and the number of images of each class that are read correctly.

    `n_correct` [A, C] counts the class first, and then every attribute beside it. `statistics` is the number of the
    statistics that ranked the latents; None where none did.
    """

    selection: str
    mode: str
    k: int | None
    seed: int | None
    statistics: int | None
    n_correct: np.ndarray


@dataclass(frozen=True)
class Labelling:
    """The names of the classes, of the attribute they are values of, and of the attributes beside it."""

    class_names: Sequence[str]
    class_attribute: str | None
    attributes: Sequence[str]


@dataclass(frozen=True)
class _Accuracies:
    """Accuracies of one condition with their intervals: [A, rows] each, where the last row is of all images."""

    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    mean_low: np.ndarray
    mean_high: np.ndarray


def _accuracies(conditions: Sequence[Condition], n: np.ndarray, present: np.ndarray) -> list[_Accuracies]:
    """The accuracies of every condition. Those that differ in the seed alone share what varies between seeds."""
    counts = [
        np.concatenate([one.n_correct[:, present], one.n_correct.sum(axis=1, keepdims=True)], axis=1)
        for one in conditions
    ]
    same: dict[tuple[str, str, int | None, int | None], list[int]] = {}
    for i, one in enumerate(conditions):
        same.setdefault((one.selection, one.mode, one.k, one.statistics), []).append(i)
    found: dict[int, _Accuracies] = {}
    for members in same.values():
        if conditions[members[0]].seed is None:
            for i in members:
                low, high = wilson_interval(counts[i], n)
                found[i] = _Accuracies(counts[i] / n, low, high, counts[i] / n, low, high)
            continue
        seeds = over_seeds(np.stack([counts[i] for i in members]), n)
        for s, i in enumerate(members):
            found[i] = _Accuracies(
                counts[i] / n, seeds.low[s], seeds.high[s], seeds.mean, seeds.mean_low, seeds.mean_high
            )
    return [found[i] for i in range(len(conditions))]


def masking_columns(
    conditions: Sequence[Condition],
    split: str,
    n_images: np.ndarray,
    labelling: Labelling,
    schema: TableSchema,
    statistics_keys: Sequence[str],
    bootstrap: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """The columns of the table. `n_images` [C]: images of each class; classes without images have no rows.

    `bootstrap` has a number per condition in each of the columns `BOOTSTRAP`.
    """
    present = np.flatnonzero(n_images)
    names: list[str | None] = [*(labelling.class_names[label] for label in present.tolist()), None]
    labels: list[int | None] = [*present.tolist(), None]
    n = np.append(n_images[present], n_images.sum())
    columns: dict[str, list[Any]] = {column.name: [] for column in schema.columns}
    several = len(statistics_keys) > 1
    for i_condition, (one, found) in enumerate(
        zip(conditions, _accuracies(conditions, n, present), strict=True)
    ):
        n_correct = np.append(one.n_correct[0, present], one.n_correct[0].sum())
        rows: dict[str, list[Any]] = {
            "split": [split] * len(n),
            "selection": [one.selection] * len(n),
            "mode": [one.mode] * len(n),
            "k": [one.k] * len(n),
            "class": labels,
            "n": n.tolist(),
            "n_correct": n_correct.tolist(),
            "accuracy": found.share[0].tolist(),
            "ci_low": found.low[0].tolist(),
            "ci_high": found.high[0].tolist(),
            "seed": [one.seed] * len(n),
            "class_name": names,
            "class_mean_accuracy": [*[None] * len(present), found.share[0, :-1].mean()],
            "attribute": [labelling.class_attribute] * len(n),
            "seeds_accuracy": found.mean[0].tolist(),
            "seeds_ci_low": found.mean_low[0].tolist(),
            "seeds_ci_high": found.mean_high[0].tolist(),
        }
        for i, name in enumerate(labelling.attributes, start=1):
            rows[f"accuracy_{name}"] = found.share[i].tolist()
            rows[f"ci_low_{name}"] = found.low[i].tolist()
            rows[f"ci_high_{name}"] = found.high[i].tolist()
        if several:
            key = None if one.statistics is None else statistics_keys[one.statistics]
            rows["statistics_key"] = [key] * len(n)
        for name, of_conditions in (bootstrap or {}).items():
            rows[name] = [*[None] * len(present), float(of_conditions[i_condition])]
        for name, values in rows.items():
            columns[name] += values
    return columns


def masking_summary(
    conditions: Sequence[Condition], n_images: np.ndarray, attributes: Sequence[str] = ()
) -> Summary:
    """Accuracies over all images: original, reconstruction, and every masking at the k nearest to 10.

    The last are named `<mode>_<selection>_k<k>`, and `<mode>_<selection>_k<k>_<attribute>` for attributes beside
    the class. Random selections are averaged over their seeds.
    """
    n = int(n_images.sum())
    plain = {one.mode: float(one.n_correct[0].sum() / n) for one in conditions if one.selection == "none"}
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
                for reading, name in enumerate(["", *(f"_{name}" for name in attributes)]):
                    share = one.n_correct[reading].sum() / n
                    found.setdefault(f"{one.mode}_{one.selection}_k{k}{name}", []).append(share)
        summary |= {name: float(np.mean(values)) for name, values in found.items()}
    return summary
