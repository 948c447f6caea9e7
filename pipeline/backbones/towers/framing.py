"""`Framing`: which part of a picture a model sees, so that a map of patches lies where its patches are.

It follows open_clip's evaluation transforms, with their rounding, and needs neither torch nor weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from patchsae.pipeline.backbones.towers.shapes import pair

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Framing:
    """How a picture is brought to the size of a model's input.

    `size` is (height, width) of the input in pixels. `shortest` scales the picture until its shorter side fits and
    cuts out the middle; `longest` scales until the longer side fits and pads; `squash` changes its proportions.
    """

    size: tuple[int, int]
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Framing:
        """The framing of open_clip's preprocessing settings (`PreprocessCfg` as a dict)."""
        return cls(pair(settings.get("size", 224)), settings.get("resize_mode") or "shortest")

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels of the picture after it is scaled, before it is cut or padded."""
        rows, columns = self.size
        if self.resize_mode == "squash":
            return columns, rows
        if self.resize_mode == "shortest" and rows == columns:
            # torchvision rounds the longer side down.
            shorter, longer = min(width, height), max(width, height)
            longer = int(rows * longer / shorter)
            return (rows, longer) if width <= height else (longer, rows)
        # open_clip's own ResizeKeepRatio rounds to the nearest.
        pick = max if self.resize_mode == "longest" else min
        ratio = pick(height / rows, width / columns)
        return round(width / ratio), round(height / ratio)

    def box(self, width: int, height: int, grid: tuple[int, int]) -> Box:
        """The part of a picture of `width` x `height` pixels that the patches of a `grid` (rows, columns) cover.

        It is (left, top, right, bottom) in fractions of the picture's width and height. With padding it reaches
        beyond the picture, below 0 and above 1. Where the input is no whole number of patches, its last pixels
        belong to no patch, and the model does not see them.
        """
        new_width, new_height = self.resized(width, height)
        left, right = _covered(new_width, self.size[1], grid[1])
        top, bottom = _covered(new_height, self.size[0], grid[0])
        return left, top, right, bottom


def _covered(n: int, size: int, n_patches: int) -> tuple[float, float]:
    """The part of an axis of `n` pixels that the patches cover when `size` pixels of its middle are taken."""
    start = round((n - size) / 2.0) if n >= size else -((size - n) // 2)
    return start / n, (start + n_patches * (size // n_patches)) / n
