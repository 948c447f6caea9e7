"""Confidence intervals of accuracies, for the tables `masking` and `reconstruction`."""

from __future__ import annotations

import numpy as np

# The 97.5 % point of the normal distribution.
_Z = 1.959963984540054


def wilson_interval(n_correct: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): the 95 % score interval of `n_correct / n`, for `n` > 0. E. B. Wilson, JASA 22 (1927)."""
    share, z2 = n_correct / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    # At a share of 0 or 1 that end of the interval is exactly 0 or 1, but rounding may miss it.
    return np.where(n_correct == 0, 0.0, middle - half), np.where(n_correct == n, 1.0, middle + half)
