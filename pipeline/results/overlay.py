"""Pictures with a latent's map laid over them, as the explorer draws them: for notebooks and the command line.

A map is drawn over the part of the picture that the model sees (`Framing.box`), smoothly between the centres of the
patches, in viridis; the stronger the latent, the less of the picture shines through. The rest of the picture is dimmed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from patchsae.pipeline.backbones.towers.framing import Box

SIDE = 320
"""Pixels of the longest side of what is drawn."""
_SMALL = 128
_CAPTION = 20
_GAP = 8
_DIMMED = 0.35
_OPAQUE = 0.8
_VIRIDIS = np.array(
    [[68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140], [40, 174, 128],
     [94, 201, 98], [173, 220, 48], [253, 231, 37]],
    np.float32,
)  # fmt: skip


def fitted(image: Image.Image, side: int = SIDE) -> Image.Image:
    """An RGB image whose longest side is `side` pixels. Images of few pixels keep their squares visible."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    way = Image.Resampling.NEAREST if max(image.size) < _SMALL else Image.Resampling.LANCZOS
    return image.resize(size, way)


def overlaid(
    image: Image.Image,
    values: np.ndarray,
    box: Box,
    largest: float | None = None,
    cell: tuple[int, int] | None = None,
) -> Image.Image:
    """An RGB image with a map [rows, columns] of activations over its part `box`, `SIDE` pixels at its longest side.

    `largest` is the activation with the brightest colour; that of the map if not given. `cell` is the (row, column) of
    a patch that is outlined.
    """
    picture = fitted(image)
    pixels = np.asarray(picture, np.float32)
    height, width = pixels.shape[:2]
    left, top, right, bottom = box[0] * width, box[1] * height, box[2] * width, box[3] * height
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    n_rows, n_columns = values.shape
    across = _between(x, left, right, n_columns)
    down = _between(y, top, bottom, n_rows)
    top_value = float(values.max()) if largest is None else largest
    shares = np.clip(values / top_value, 0, 1) if top_value > 0 else np.zeros_like(values)
    shade = down @ shares @ across.T
    stops = shade * (len(_VIRIDIS) - 1)
    low = np.minimum(stops.astype(int), len(_VIRIDIS) - 2)
    colour = _VIRIDIS[low] + (stops - low)[..., None] * (_VIRIDIS[low + 1] - _VIRIDIS[low])
    alpha = (_OPAQUE * np.sqrt(shade))[..., None]
    drawn = (1 - alpha) * pixels + alpha * colour
    seen = ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))
    drawn = np.where(seen[..., None], drawn, _DIMMED * pixels)
    found = Image.fromarray(drawn.clip(0, 255).round().astype(np.uint8))
    if cell is not None:
        step = ((right - left) / n_columns, (bottom - top) / n_rows)
        corner = (left + cell[1] * step[0], top + cell[0] * step[1])
        edges = (*corner, corner[0] + step[0] - 1, corner[1] + step[1] - 1)
        draw = ImageDraw.Draw(found)
        draw.rectangle(edges, outline="black", width=3)
        draw.rectangle(edges, outline="white", width=1)
    return found


def _between(places: np.ndarray, start: float, stop: float, n: int) -> np.ndarray:
    """Weights [places, n] with which a place along an axis takes the values of n patches from `start` to `stop`."""
    at = np.clip((places - start) / (stop - start) * n - 0.5, 0, n - 1)
    weights: np.ndarray = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n)))
    return weights


def sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 4) -> Image.Image:
    """Pictures with a line of text below each, in rows."""
    columns = min(columns, len(pictures))
    n_rows = -(-len(pictures) // columns)
    side = SIDE + _GAP
    whole = Image.new("RGB", (columns * side + _GAP, n_rows * (side + _CAPTION) + _GAP), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(13)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = _GAP + i % columns * side, _GAP + i // columns * (side + _CAPTION)
        whole.paste(picture, (x + (SIDE - picture.width) // 2, y + (SIDE - picture.height) // 2))
        draw.text((x, y + SIDE + 2), caption, fill="black", font=font)
    return whole
