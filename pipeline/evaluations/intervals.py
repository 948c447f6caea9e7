"""Confidence intervals of accuracies, for the tables `masking` and `reconstruction`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_COVERAGE = 0.975
# That point of the normal distribution.
_Z = 1.959963984540054


def wilson_interval(
    n_correct: np.ndarray, n: np.ndarray, z: float | np.ndarray = _Z
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high): the 95 % score interval of `n_correct / n`, for `n` > 0. E. B. Wilson, JASA 22 (1927).

    With another `z` it is the interval of another coverage.
    """
    share, z2 = n_correct / n, z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    # At a share of 0 or 1 that end of the interval is exactly 0 or 1, but rounding may miss it.
    return np.where(n_correct == 0, 0.0, middle - half), np.where(n_correct == n, 1.0, middle + half)


@dataclass(frozen=True)
class OverSeeds:
    """Accuracies of S random selections, and 95 % intervals of the accuracy that is expected of such a selection."""

    low: np.ndarray  # [S, ...]: interval around the accuracy of one seed
    high: np.ndarray
    mean: np.ndarray  # [...]: mean over seeds
    mean_low: np.ndarray  # interval around the mean
    mean_high: np.ndarray


def over_seeds(n_correct: np.ndarray, n: np.ndarray) -> OverSeeds:
    """Intervals that cover what varies between images and what varies between seeds.

    `n_correct` [S, ...]: correct images of each seed; `n` [...]: images, the same for all seeds. Let p be the mean
    of the S accuracies and s^2 their variance with the divisor S - 1. By the law of total variance the accuracy of
    one seed has the variance V = p (1 - p) / n + s^2, and the mean of S seeds on the same images has
    p (1 - p) / n + s^2 / S. Since s^2 contains some of the variation between images, both are slightly too large.

    V / (p (1 - p) / n) is the design effect; the interval is Wilson's for n divided by it (E. L. Korn, B. I.
    Graubard, Survey Methodology 24, 1998). Student's t takes the place of the normal distribution, with
    V^2 / ((s^2)^2 / (S - 1)) degrees of freedom, or that of s^2 / S, since s^2 is an estimate from few seeds (F. E.
    Satterthwaite, Biometrics Bulletin 2, 1946). With one seed s^2 is unknown, and the interval is that of the images
    alone.
    """
    n_seeds = len(n_correct)
    share = n_correct / n
    mean = share.mean(axis=0)
    between = share.var(axis=0, ddof=1) if n_seeds > 1 else np.zeros_like(mean)
    low, high = _interval(share, mean, n, between, n_seeds)
    mean_low, mean_high = _interval(mean, mean, n, between / n_seeds, n_seeds)
    return OverSeeds(low, high, mean, mean_low, mean_high)


def _interval(
    share: np.ndarray, mean: np.ndarray, n: np.ndarray, between: np.ndarray, n_seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval around `share`, whose variance is that of n images and `between`."""
    from scipy.special import stdtrit

    within = mean * (1 - mean) / n
    total = within + between
    # Where all seeds agree, `between` is 0, and where all images do, `within` is too.
    n_effective = n * np.divide(within, total, out=np.ones_like(total), where=total > 0)
    ratio = np.divide(total, between, out=np.full_like(total, np.inf), where=between > 0)
    freedom = np.where(between > 0, (n_seeds - 1.0) * np.minimum(ratio, 1e6) ** 2, np.inf)
    t = np.where(between > 0, stdtrit(np.minimum(freedom, 1e9), _COVERAGE), _Z)
    return wilson_interval(share * n_effective, n_effective, t)
