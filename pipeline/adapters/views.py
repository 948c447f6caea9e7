"""Views: random crops of images, mirrored or not, on which adapters are trained.

A view is a pure function of (seed, image, view number), so that training which is stopped and continued sees the
same ones. The distribution is that of torchvision's `RandomResizedCrop` and `RandomHorizontalFlip` with the settings
of CoOp, MaPLe and PromptSRC: an area of 8 % to 100 %, a ratio of 3:4 to 4:3, and one in two mirrored.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from patchsae.pipeline.images.indexed import IndexedImages

_AREA = (0.08, 1.0)
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
# torchvision takes the largest crop in the middle if this many draws do not fit into the image.
_DRAWS = 10

View = int | None
"""The number of a random view, or None for the whole image."""


class Views(TorchDataset[Tensor]):
    """Maps (row, view) to the backbone's input."""

    def __init__(self, images: IndexedImages, size: tuple[int, int], seed: int) -> None:
        """`size`: (height, width) of the backbone's images."""
        self.images = images
        self.size = size
        self.seed = seed

    def __getitem__(self, item: tuple[int, View]) -> Tensor:
        row, view = item
        image = self.images.image(row)
        if view is not None:
            image = random_view(image, self.size, (self.seed, row, view))
        pixels: Tensor = self.images.preprocess(image)
        return pixels


def random_view(image: Image.Image, size: tuple[int, int], seed: tuple[int, ...]) -> Image.Image:
    """The view of an image that belongs to `seed`, of (height, width) `size`."""
    source = np.random.PCG64(np.random.SeedSequence(seed))
    u = (source.random_raw(4 * _DRAWS + 1) >> 11) * 2.0**-53
    view = image.crop(_box(image.width, image.height, u[1:].reshape(_DRAWS, 4)))
    view = view.resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return ImageOps.mirror(view) if u[0] < 0.5 else view


def _box(width: int, height: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the first crop that fits; `draws` [n, 4] are uniform in [0, 1)."""
    for area, ratio, x, y in draws.tolist():
        pixels = width * height * (_AREA[0] + (_AREA[1] - _AREA[0]) * area)
        aspect = math.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * ratio)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    # The whole image, cut at its longer side to the nearest ratio that is allowed.
    aspect = min(max(width / height, 3 / 4), 4 / 3)
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
