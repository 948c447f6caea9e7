"""Bootstrap intervals over images: exact to repeat, on any machine and for any number of threads.

A resample draws as many images as there are, with replacement. The same resamples serve every quantity, so that
differences between two of them are paired. B. Efron, R. J. Tibshirani, An Introduction to the Bootstrap, 1993.

Shapes: n images, Q resamples, M ways.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_COVERAGE = (0.025, 0.975)
_CELLS = 16_000_000
# Digits after which sums may differ between machines.
_DECIMALS = 12


def resamples(n: int, n_resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each of the n images is drawn, some resamples at a time: int64 [some, n].

    The draws are raw numbers of PCG64, whose stream NumPy guarantees, modulo n; n is far below 2^64, so the remainders
    are even.
    """
    generator = np.random.PCG64(seed)
    step = max(1, _CELLS // max(1, n))
    for start in range(0, n_resamples, step):
        some = min(step, n_resamples - start)
        drawn = (generator.random_raw(some * n) % np.uint64(n)).astype(np.int64).reshape(some, n)
        cell = drawn + n * np.arange(some)[:, None]
        yield np.bincount(cell.ravel(), minlength=some * n).reshape(some, n)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 2.5 and 97.5 % points of Q values: [Q, ...] -> two [...]. Those that are NaN do not count."""
    low, high = np.nanquantile(np.round(values, _DECIMALS), _COVERAGE, axis=0)
    return low, high


def accuracies(
    right: np.ndarray, labels: np.ndarray, n_resamples: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy, and unweighted mean over classes, of M ways in every resample: two float64 [Q, M].

    `right` [M, n] bool; `labels` [n]. A class of which a resample has no image does not count in its mean.
    """
    _, of_class = np.unique(labels, return_inverse=True)
    n_classes = int(of_class.max(initial=-1)) + 1
    columns = right.T.astype(np.float64)
    micro, macro = [], []
    for drawn in resamples(len(labels), n_resamples, seed):
        weights = drawn.astype(np.float64)
        micro.append(weights @ columns / len(labels))
        cell = of_class + n_classes * np.arange(len(drawn))[:, None]
        of_classes = np.bincount(cell.ravel(), weights.ravel(), n_classes * len(drawn)).reshape(
            len(drawn), n_classes
        )
        share = np.divide(1.0, of_classes, out=np.zeros_like(of_classes), where=of_classes > 0)
        share /= (of_classes > 0).sum(axis=1, keepdims=True)
        macro.append((weights * share[:, of_class]) @ columns)
    return np.concatenate(micro), np.concatenate(macro)
