"""The shapes world in other styles: the same scenes with inverted colours, blurred, or as outlines.

A shifted image shows what the plain image of the same seed, split and index shows, and has its labels. All
arithmetic is exact, as in `pipeline.shapes.world`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from patchsae.pipeline.shapes.world import Layout, draw

Shift = Literal["inverted", "blurred", "outlined"]
_BLUR = 2  # pixels on either side


def shifted(plan: Layout, shift: Shift | None) -> NDArray[np.uint8]:
    """The image of a scene in a style: uint8 [64, 64, 3]."""
    image = draw(plan, outlined=shift == "outlined").image
    if shift == "inverted":
        return np.asarray(255 - image, np.uint8)
    return _blurred(image) if shift == "blurred" else image


def _blurred(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The rounded mean over a window of 5 x 5 pixels; pixels at the border are repeated."""
    width = 2 * _BLUR + 1
    padded = np.pad(image.astype(np.int64), ((_BLUR, _BLUR), (_BLUR, _BLUR), (0, 0)), mode="edge")
    n_rows, n_columns, _ = image.shape
    rows = sum(padded[i : i + n_rows] for i in range(width))
    total = sum(np.asarray(rows)[:, i : i + n_columns] for i in range(width))
    return ((2 * np.asarray(total) + width**2) // (2 * width**2)).astype(np.uint8)
