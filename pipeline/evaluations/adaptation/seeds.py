"""Means and intervals over adapters that differ in the seed alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# The columns of `adaptation` that have intervals over images end in these.
_LOW, _HIGH = "_ci_low", "_ci_high"
SUMMARISED = (
    "accuracy_before",
    "accuracy_after",
    "gain",
    "high",
    "high_per_class",
    "high_to_low",
    "high_to_low_per_class",
    "low_to_high",
    "low_to_high_per_class",
    "kept_latents",
    "added_latents",
    "removed_latents",
    "pearson",
    "spearman",
    "change",
    "change_explained",
    "change_left_over",
    "change_in_span",
)
"""The quantities that are summarised."""


def over_adapters(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `adaptation_seeds`, from those of `adaptation` with a digest of their `settings` without the seed."""
    together: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        together[row["settings"], row["classes"]].append(row)
    found = []
    for members in together.values():
        first = members[0]
        about = {name: first[name] for name in ("kind", "dataset", "trained_on", "shots", "classes")}
        for quantity in SUMMARISED:
            known = [row for row in members if row[quantity] is not None]
            found.append({**about, "quantity": quantity, "n_seeds": len(known), **_summary(known, quantity)})
    return found


def _summary(rows: Sequence[Mapping[str, Any]], quantity: str) -> dict[str, float | None]:
    if not rows:
        return dict.fromkeys(("mean", "standard_deviation", "ci_low", "ci_high"))
    from scipy.stats import t

    values = np.array([row[quantity] for row in rows], np.float64)
    n, mean = len(values), float(values.mean())
    spread = float(values.std(ddof=1)) if n > 1 else None
    widths = [
        row[quantity + _HIGH] - row[quantity + _LOW] for row in rows if row.get(quantity + _LOW) is not None
    ]
    of_seeds = float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n) if spread is not None else 0.0
    of_images = float(np.mean(widths)) / 2 if widths else 0.0
    half = None if spread is None and not widths else math.hypot(of_seeds, of_images)
    return {
        "mean": mean,
        "standard_deviation": spread,
        "ci_low": None if half is None else mean - half,
        "ci_high": None if half is None else mean + half,
    }
