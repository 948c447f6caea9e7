"""Makes the rows of the tables of `remapping` from the statistics of both sides and the arrays of all parts.

Shapes: C classes, S latents, Q resamples, n images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchsae.pipeline.evaluations.bootstrap import accuracies, interval, resamples
from patchsae.pipeline.evaluations.intervals import wilson_interval
from patchsae.pipeline.evaluations.remapping.counting import CHANGES, ClassSums
from patchsae.pipeline.evaluations.remapping.groups import (
    ACTIVITIES,
    GROUPS,
    activities,
    correlations,
    gain,
    groups,
)
from patchsae.pipeline.evaluations.remapping.settings import RemappingSettings, Task
from patchsae.pipeline.evaluations.remapping.sides import SIDES, ClassCounts

Row = dict[str, Any]


@dataclass
class ClassResults:
    """What is known of every class: arrays by class id."""

    settings: RemappingSettings
    tau: float
    n_latents: int
    members: list[Row] = field(default_factory=list)
    groups: dict[int, np.ndarray] = field(default_factory=dict)  # [3]
    activities: dict[int, np.ndarray] = field(default_factory=dict)  # [3]
    changes: dict[int, np.ndarray] = field(default_factory=dict)  # [5]
    resampled: dict[int, np.ndarray] = field(default_factory=dict)  # [3, Q]
    sensitivity: dict[int, np.ndarray] = field(default_factory=dict)  # [taus, bounds, 3]
    tokens: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Latents with a counted token, and their counts [2, latents]."""

    @property
    def taus(self) -> list[float]:
        return [self.tau, *(tau for tau in self.settings.taus if tau != self.tau)]

    def add(self, label: int, name: str, counts: ClassCounts, n_images: int, sums: ClassSums | None) -> None:
        """Adds a class of which the statistics count `n_images` images."""
        one, (x, y) = self.settings, counts.n_tokens
        in_group = groups(x, y, one.upper, one.lower)
        active = activities(*(counts.n_images >= max(1, np.ceil(one.active_in * n_images))))
        self.groups[label], self.activities[label] = in_group.sum(axis=1), active.sum(axis=1)
        for latent in np.flatnonzero(in_group.any(axis=0) | active[1] | active[2]).tolist():
            self.members.append(
                {
                    "class": label,
                    "class_name": name,
                    "latent": latent,
                    "x": int(x[latent]),
                    "y": int(y[latent]),
                    "group": _which(GROUPS, in_group[:, latent]),
                    "activity": _which(ACTIVITIES, active[:, latent]),
                }
            )
        counted = np.flatnonzero(counts.n_tokens.any(axis=0))
        self.tokens[label] = counted, counts.n_tokens[:, counted]
        by_tau = {self.tau: counts.n_tokens}
        if sums is not None:
            self.changes[label] = sums.changes
            by_tau |= {tau: above for tau, above in zip(one.taus, sums.above, strict=True) if tau != self.tau}
            if one.n_bootstrap:
                self.resampled[label] = self._resampled(label, sums)
        self.sensitivity[label] = np.array(
            [
                [groups(by_tau[tau][0], by_tau[tau][1], *pair).sum(axis=1) for pair in one.bounds]
                for tau in self.taus
            ]
        ).reshape(len(self.taus), len(one.bounds), len(GROUPS))

    def _resampled(self, label: int, sums: ClassSums) -> np.ndarray:
        """Members of the groups in every resample of the images of a class: [3, Q]."""
        one, images = self.settings, np.stack(sums.images).astype(np.float64)
        found = []
        for drawn in resamples(len(images), one.n_bootstrap, seed=label):
            counts = (drawn @ images.reshape(len(images), -1)).reshape(len(drawn), 2, -1)
            found.append(groups(counts[:, 0], counts[:, 1], one.upper, one.lower).sum(axis=-1))
        return np.concatenate(found, axis=1)

    def dataset_counts(self, classes: np.ndarray) -> np.ndarray:
        """Tokens above tau in all images of some classes: [2, S]."""
        total = np.zeros((2, self.n_latents), np.int64)
        for label in classes.tolist():
            latents, counts = self.tokens[label]
            total[:, latents] += counts
        return total


def _which(names: Sequence[str], is_one: np.ndarray) -> str | None:
    return next((name for name, is_it in zip(names, is_one, strict=True) if is_it), None)


def remapping_rows(
    results: ClassResults, tasks: Sequence[Task], n_total: int, labels: np.ndarray, predicted: np.ndarray
) -> list[Row]:
    """The rows of `remapping`. `labels` [n]; `predicted` [2, tasks, n] are the class ids, -1 outside of a task."""
    return [
        {
            "classes": task.name,
            "n_classes": len(task.classes),
            "n_classes_total": n_total,
            **_group_columns(results, task, n_total),
            **_accuracy_columns(labels, predicted[:, i], results.settings.n_bootstrap),
            **{
                f"{name}_latents": float(np.mean([results.activities[c][j] for c in task.classes.tolist()]))
                for j, name in enumerate(ACTIVITIES)
            },
            **_correlation_columns(results, task),
            **_change_columns(results, task),
        }
        for i, task in enumerate(tasks)
    ]


def _group_columns(results: ClassResults, task: Task, n_total: int) -> Row:
    classes = task.classes.tolist()
    totals = np.sum([results.groups[c] for c in classes], axis=0)
    found: Row = {}
    resampled = None
    if results.settings.n_bootstrap:
        nothing = np.zeros((len(GROUPS), results.settings.n_bootstrap))
        resampled = np.sum([results.resampled.get(c, nothing) for c in classes], axis=0)
    for i, name in enumerate(GROUPS):
        for suffix, n in (("", n_total), ("_per_class", len(classes))):
            found[f"{name}{suffix}"] = float(totals[i] / n)
            low, high = (None, None) if resampled is None else map(float, interval(resampled[i] / n))
            found |= {f"{name}{suffix}_ci_low": low, f"{name}{suffix}_ci_high": high}
    return found


def _accuracy_columns(labels: np.ndarray, predicted: np.ndarray, n_bootstrap: int) -> Row:
    here = predicted[0] >= 0
    right, labels = predicted[:, here] == labels[here], labels[here]
    n = len(labels)
    share = right.mean(axis=1)
    low, high = wilson_interval(right.sum(axis=1), np.array([n, n]))
    classes = np.unique(labels)
    found: Row = {"n": n, "gain": gain(*share.tolist()), "gain_ci_low": None, "gain_ci_high": None}
    for i, side in enumerate(SIDES):
        found[f"accuracy_{side}"] = float(share[i])
        found[f"accuracy_{side}_ci_low"], found[f"accuracy_{side}_ci_high"] = float(low[i]), float(high[i])
        found[f"class_mean_accuracy_{side}"] = float(np.mean([right[i, labels == c].mean() for c in classes]))
    if n_bootstrap:
        before, after = accuracies(right, labels, n_bootstrap)[0].T
        if (before < 1).any():
            gains = (after - before)[before < 1] / (1 - before[before < 1])
            found["gain_ci_low"], found["gain_ci_high"] = map(float, interval(gains))
    return found


def _correlation_columns(results: ClassResults, task: Task) -> Row:
    counts = results.dataset_counts(task.classes)
    pearson, spearman, n = correlations(counts[0], counts[1], results.settings.n_correlated)
    return {"n_correlated": n, "pearson": pearson, "spearman": spearman}


def _change_columns(results: ClassResults, task: Task) -> Row:
    nothing = np.zeros(len(CHANGES))
    sums = np.sum([results.changes.get(c, nothing) for c in task.classes.tolist()], axis=0)
    total, left_over, reconstructed, in_span, size = map(float, sums)
    if np.isnan(total):
        return dict.fromkeys(_CHANGE_COLUMNS)
    found: Row = dict.fromkeys(_CHANGE_COLUMNS)
    found["change"] = float(np.sqrt(total / size)) if size else None
    if total:
        found |= {
            "change_explained": 1 - left_over / total,
            "change_left_over": left_over / total,
            "change_reconstructed": reconstructed / total,
            # Rounding may take the projection of what is all inside the span above it.
            "change_in_span": min(1.0, in_span / total),
        }
    return found


_CHANGE_COLUMNS = (
    "change",
    "change_explained",
    "change_left_over",
    "change_reconstructed",
    "change_in_span",
)


def sensitivity_rows(results: ClassResults, tasks: Sequence[Task], n_total: int) -> Iterator[Row]:
    for task in tasks:
        totals = np.sum([results.sensitivity[c] for c in task.classes.tolist()], axis=0)
        for i, tau in enumerate(results.taus):
            for j, (upper, lower) in enumerate(results.settings.bounds):
                row: Row = {"classes": task.name, "tau": tau, "upper": upper, "lower": lower}
                for g, name in enumerate(GROUPS):
                    row[name] = float(totals[i, j, g] / n_total)
                    row[f"{name}_per_class"] = float(totals[i, j, g] / len(task.classes))
                yield row


def prediction_rows(
    tasks: Sequence[Task],
    ks: Sequence[int | None],
    names: Sequence[str],
    labels: np.ndarray,
    predicted: np.ndarray,
) -> Iterator[Row]:
    """Rows of `remapping_predictions`; `predicted` [2, tasks, k, n], of which the first is of k None."""
    n_classes = len(names)
    for t, task in enumerate(tasks):
        for side, of_side in zip(SIDES, predicted, strict=True):
            for k, of_k in zip(ks, of_side[t], strict=True):
                here = of_k >= 0
                pair, n = np.unique(
                    labels[here].astype(np.int64) * n_classes + of_k[here], return_counts=True
                )
                for one, number in zip(pair.tolist(), n.tolist(), strict=True):
                    label, as_label = divmod(one, n_classes)
                    yield {
                        "classes": task.name,
                        "model": side,
                        "k": k,
                        "class": label,
                        "class_name": names[label],
                        "predicted": as_label,
                        "predicted_name": names[as_label],
                        "n": number,
                    }


def columns(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in names}
