"""The columns of bootstrap intervals in the table `masking`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from patchsae.pipeline.evaluations.bootstrap import accuracies, interval
from patchsae.storage.tables import Column

_QUANTITIES = {
    "accuracy": "accuracy",
    "class_mean": "class_mean_accuracy",
    "cost": "what the mask costs: the accuracy with the original activations minus that of the row, on the same "
    "resamples",
}
BOOTSTRAP = tuple(
    Column(
        f"bootstrap_{name}_{end}",
        pa.float64(),
        f"{'Lower' if end == 'low' else 'Upper'} end of the 95 % percentile interval of {what}, over resamples of the "
        "images with replacement (`n_bootstrap`); null in rows of one class.",
        nullable=True,
    )
    for name, what in _QUANTITIES.items()
    for end in ("low", "high")
)


def bootstrapped(
    right: Sequence[np.ndarray], labels: np.ndarray, n_resamples: int
) -> Mapping[str, np.ndarray]:
    """The columns `BOOTSTRAP` for every condition, of which the first is `original`.

    `right` has a bool [n] per condition; `labels` [n].
    """
    micro, macro = accuracies(np.stack(right), labels, n_resamples)
    values = {"accuracy": micro, "class_mean": macro, "cost": micro[:, :1] - micro}
    found = {}
    for name in _QUANTITIES:
        found[f"bootstrap_{name}_low"], found[f"bootstrap_{name}_high"] = interval(values[name])
    return found
