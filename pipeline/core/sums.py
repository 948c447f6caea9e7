"""`total`, the sum of all elements of a tensor, the same for any number of threads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# 8 MB in float64.
_ELEMENTS = 1 << 20


def total(values: Tensor) -> float:
    """The sum over all elements, in float64.

    On a CPU torch gives each thread a part of a sum over all elements, so that its last digits depend on the
    number of threads. Sums of rows are not divided, and NumPy adds them in one thread.
    """
    if values.device.type != "cpu":
        return values.sum(dtype=torch.float64).item()
    if values.ndim == 1:
        return float(values.numpy().sum(dtype=np.float64))
    # Some rows at a time, because torch copies what it sums to float64 first.
    step = max(1, _ELEMENTS // values.shape[-1])
    rows = [part.sum(dim=-1, dtype=torch.float64).flatten() for part in values.split(step)]
    return float(torch.cat(rows).numpy().sum(dtype=np.float64))
