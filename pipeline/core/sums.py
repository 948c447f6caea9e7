"""`total`, the sum of all elements of a tensor, the same for any number of threads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def total(values: Tensor) -> float:
    """The sum over all elements, in float64.

    On a CPU torch gives each thread a part of a sum over all elements, so that its last digits depend on the
    number of threads. Sums of rows are not divided, and NumPy adds them in one thread.
    """
    if values.device.type != "cpu":
        return values.sum(dtype=torch.float64).item()
    rows = values.sum(dim=-1, dtype=torch.float64) if values.ndim > 1 else values
    return float(rows.numpy().sum(dtype=np.float64))
