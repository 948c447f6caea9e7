"""The shapes world: 64x64 images of coloured, textured shapes on textured backgrounds, with ground truth.

The dataset `shapes` and the training of ShapesCLIP render images with it. Every image is a pure function of
(seed, split, index). Random numbers are the raw output of the Philox generator, and the arithmetic uses only
exactly rounded operations (no sine, no random distribution of a library). So the bytes depend neither on the
machine nor on the version of NumPy.

Axes: y, x are pixels (y down); a patch is 8x8 pixels, so an image has an 8x8 grid of patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

IMAGE_SIZE = 64
PATCH_SIZE = 8
GRID_SIZE = IMAGE_SIZE // PATCH_SIZE

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "crescent", "bowtie")
WITHHELD_SHAPES = ("heart", "bolt")
TEXTURES = ("solid", "striped", "dotted", "checkered", "speckled", "shaded")
WITHHELD_TEXTURES = ("zigzag", "gridded")
COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "orange": (1.00, 0.52, 0.05),
    "yellow": (0.98, 0.92, 0.15),
    "green": (0.12, 0.70, 0.16),
    "cyan": (0.10, 0.85, 0.90),
    "blue": (0.12, 0.22, 0.92),
    "purple": (0.50, 0.12, 0.72),
    "pink": (1.00, 0.50, 0.78),
}
SIZES = {"small": (26, 32), "large": (38, 46)}  # inclusive range of the diameter in pixels
BACKGROUNDS = ("plain", "lined", "tiled", "wavy", "grainy", "cloudy")

VALUES: dict[str, tuple[str, ...]] = {
    "shape": SHAPES + WITHHELD_SHAPES,
    "colour": tuple(COLOURS),
    "texture": TEXTURES + WITHHELD_TEXTURES,
    "size": tuple(SIZES),
    "background": BACKGROUNDS,
}
"""Every value of every attribute, those of the pretraining splits first."""

TEMPLATES = {
    "shape": ("a photo of a {}", "an image of a {}", "a picture of a {}"),
    "colour": ("a photo of a {} object", "an image of a {} object", "a picture of a {} object"),
    "texture": ("a photo of a {} object", "an image of a {} object", "a picture of a {} object"),
    "size": ("a photo of a {} object", "an image of a {} object", "a picture of a {} object"),
    "background": (
        "a photo of an object on a {} background",
        "an image of an object on a {} background",
        "a picture of an object on a {} background",
    ),
}
"""Zero-shot prompts per attribute, in the language of the captions; `{}` stands for the value."""

PRETRAINING_VALUES = {**VALUES, "shape": SHAPES, "texture": TEXTURES}

SPLITS = ("pretrain", "heldout", "train", "test", "downstream_train", "downstream_test", "two_objects")
"""`pretrain` and its twin `heldout` show 1 to 3 objects, `two_objects` two small ones that differ in shape, colour
and texture, the others one; only the downstream splits show withheld values."""

OBJECT_COUNT_SHARES = (0.70, 0.20, 0.10)  # of 1, 2 and 3 objects in `pretrain` and `heldout`
PREFIXES = ("", "a photo of ", "an image of ", "a picture of ")

N_UNIFORMS = 96  # drawn per image before any noise texture
N_CANDIDATES = 8  # positions tried per object, the least crowded one wins
SUPERSAMPLING = 4
ROTATIONS = tuple(step / 48 for step in range(-4, 5))  # tan(angle / 2): about -9.5 to 9.5 degrees


def values_of(split: str) -> dict[str, tuple[str, ...]]:
    """The values that can occur in `split`, per attribute."""
    return VALUES if split.startswith("downstream") else PRETRAINING_VALUES


@dataclass(frozen=True)
class Placement:
    """One object before it is drawn: its attribute values, its box in pixels and its texture's draw."""

    shape: str
    colour: str
    texture: str
    size: str
    diameter: int
    top: int
    left: int
    rotation: int
    period: float
    phase: tuple[float, float]
    direction: int
    tint: tuple[float, float, float]

    def value(self, attribute: str) -> str:
        """The object's value of `shape`, `colour`, `texture` or `size`."""
        return str(getattr(self, attribute))


@dataclass(frozen=True)
class Layout:
    """What a scene shows, cheap to draw: no pixel is rendered. Largest object first."""

    seed: int
    split: str
    index: int
    placements: tuple[Placement, ...]
    background: str
    background_draw: tuple[float, ...]
    caption: str
    separate_noise: bool = False
    """Whether the background and every object draw their noise from streams of their own, so that changing one of
    them leaves the others as they are (`pipeline.shapes.pairs`)."""

    def value(self, attribute: str) -> str:
        """The value of `attribute`; an object's attribute is the first object's."""
        return self.values(attribute)[0]

    def values(self, attribute: str) -> tuple[str, ...]:
        """The value of `attribute` of every object, or the background alone."""
        if attribute == "background":
            return (self.background,)
        return tuple(placement.value(attribute) for placement in self.placements)


@dataclass(frozen=True)
class Object:
    """A drawn object. `mask` is the visible share of each pixel, float32 [64, 64] in 0..1."""

    placement: Placement
    mask: Float

    def value(self, attribute: str) -> str:
        """The object's value of `shape`, `colour`, `texture` or `size`."""
        return self.placement.value(attribute)


@dataclass(frozen=True)
class Scene:
    """An image with its ground truth: uint8 [64, 64, 3], the visible objects, the background, a caption."""

    image: NDArray[np.uint8]
    objects: tuple[Object, ...]
    background: str
    background_mask: Float
    caption: str


def layout(seed: int, split: str, index: int) -> Layout:
    """What an image shows, found in about 30 microseconds. Raises ValueError for an unknown split."""
    draws = iter(uniforms(generator(seed, split, index), N_UNIFORMS).tolist())
    values = values_of(split)
    n_objects = 1
    if split in ("pretrain", "heldout"):
        u = next(draws)
        n_objects += (u >= OBJECT_COUNT_SHARES[0]) + (u >= OBJECT_COUNT_SHARES[0] + OBJECT_COUNT_SHARES[1])
    placements: list[Placement] = []

    def pick(options: tuple[str, ...]) -> str:
        return options[int(next(draws) * len(options))]

    def pick_value(attribute: str) -> str:
        taken = [p.value(attribute) for p in placements] if split == "two_objects" else []
        return pick(tuple(value for value in values[attribute] if value not in taken))

    if split == "two_objects":
        sizes = ["small", "small"]
    else:
        # Two large objects would hide one another: at most the first one is large.
        sizes = [pick(values["size"])] + ["small"] * (n_objects - 1)
    for size in sizes:
        smallest, largest = SIZES[size]
        diameter = smallest + int(next(draws) * (largest - smallest + 1))
        top, left = _position(draws, diameter, placements)
        placements.append(
            Placement(
                shape=pick_value("shape"),
                colour=pick_value("colour"),
                texture=pick_value("texture"),
                size=size,
                diameter=diameter,
                top=top,
                left=left,
                rotation=int(next(draws) * len(ROTATIONS)),
                period=7.0 + 2.0 * next(draws),
                phase=(next(draws), next(draws)),
                direction=int(next(draws) * 4),
                tint=(next(draws), next(draws), next(draws)),
            )
        )
    background = pick(values["background"])
    background_draw = tuple(next(draws) for _ in range(8))
    caption = pick(PREFIXES) + description(placements, background)
    return Layout(seed, split, index, tuple(placements), background, background_draw, caption)


def description(placements: Sequence[Placement], background: str) -> str:
    """A caption without a prefix: every object with its values, and the background."""
    nouns = [f"a {p.size} {p.colour} {p.texture} {p.shape}" for p in placements]
    return f"{' and '.join(nouns)} on a {background} background"


def render(seed: int, split: str, index: int) -> Scene:
    """Image `index` of `split` with its ground truth; a pure function of the arguments."""
    return draw(layout(seed, split, index))


def draw(plan: Layout, outlined: bool = False) -> Scene:
    """The scene that `plan` describes, far objects first, anti-aliased by 4x4 supersampling.

    `outlined` leaves the inside of objects out; their masks are those of the whole objects.
    """
    noise = _Noise(plan)
    canvas = _draw_background(plan, noise)
    masks: list[Float] = []
    for i, placement in enumerate(plan.placements):
        d, top, left = placement.diameter, placement.top, placement.left
        coverage = _coverage(placement.shape, d, placement.rotation)
        if plan.separate_noise:
            noise = _Noise(plan, _FIRST_OBJECT_STREAM + i)
        for mask in masks:
            mask[top : top + d, left : left + d] *= 1 - coverage
        mask = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
        mask[top : top + d, left : left + d] = coverage
        masks.append(mask)
        tone = OBJECT_TEXTURES[placement.texture](placement, noise)
        base = np.asarray(COLOURS[placement.colour], np.float32)
        base = base + np.float32(0.08) * (np.asarray(placement.tint, np.float32) - np.float32(0.5))
        window = canvas[top : top + d, left : left + d]
        # The second tone is a dark shade of the same colour.
        colour = base * (1 - np.float32(0.62) * tone)[..., None]
        painted = coverage - _interior(coverage) if outlined else coverage
        window += painted[..., None] * (colour - window)
    np.clip(canvas, 0, 1, out=canvas)
    image = (canvas * 255 + np.float32(0.5)).astype(np.uint8)
    background_mask = np.ones((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for mask in masks:
        background_mask -= mask
    objects = tuple(Object(p, m) for p, m in zip(plan.placements, masks, strict=True))
    return Scene(image, objects, plan.background, np.maximum(background_mask, 0), plan.caption)


def token_masks(scene: Scene) -> dict[str, Float]:
    """`attribute=value` -> share of each patch's pixels that show the value, float32 [8, 8] in 0..1.

    Holds every value of every attribute, also the absent ones (all zero).
    """
    masks = {
        f"{attribute}={value}": np.zeros((GRID_SIZE, GRID_SIZE), np.float32)
        for attribute, values in VALUES.items()
        for value in values
    }
    for obj in scene.objects:
        share = _patch_share(obj.mask)
        for attribute in ("shape", "colour", "texture", "size"):
            masks[f"{attribute}={obj.value(attribute)}"] += share
    masks[f"background={scene.background}"] += _patch_share(scene.background_mask)
    return masks


def _patch_share(mask: Float) -> Float:
    shares: Float = mask.reshape(GRID_SIZE, PATCH_SIZE, GRID_SIZE, PATCH_SIZE).mean((1, 3), dtype=np.float32)
    return shares


_NOISE_STREAM = 1
_FIRST_OBJECT_STREAM = 2
OTHER_VALUE_STREAM = 16


def generator(seed: int, split: str, index: int, stream: int = 0) -> np.random.Philox:
    if split not in SPLITS:
        raise ValueError(f"the shapes world has no split {split!r}; choose one of {', '.join(SPLITS)}")
    return np.random.Philox(np.random.SeedSequence((seed, SPLITS.index(split), index, stream)))


def uniforms(source: np.random.Philox, n: int) -> NDArray[np.float64]:
    """`n` numbers in [0, 1) from the raw stream, whose definition cannot change between NumPy versions."""
    raw = np.asarray(source.random_raw(n))
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


class _Noise:
    """Uniform noise of one scene, drawn from its own stream and only if a texture asks for it."""

    def __init__(self, plan: Layout, stream: int = _NOISE_STREAM) -> None:
        self._plan = plan
        self._stream = stream
        self._generator: np.random.Philox | None = None

    def __call__(self, n_rows: int, n_columns: int) -> Float:
        """float32 [n_rows, n_columns] of multiples of 1/256 in 0..1."""
        if self._generator is None:
            plan = self._plan
            self._generator = generator(plan.seed, plan.split, plan.index, self._stream)
        n = n_rows * n_columns
        raw = np.asarray(self._generator.random_raw(-(-n // 8))).astype("<u8").view(np.uint8)[:n]
        return raw.reshape(n_rows, n_columns).astype(np.float32) * np.float32(1 / 256)


def _position(draws: Iterator[float], diameter: int, placed: list[Placement]) -> tuple[int, int]:
    """The roomiest of some random boxes (top, left); the first one where nothing is placed yet."""
    free = IMAGE_SIZE - diameter + 1
    if not placed:
        return int(next(draws) * free), int(next(draws) * free)
    best, best_gap = (0, 0), -1e9
    for _ in range(N_CANDIDATES):
        top, left = int(next(draws) * free), int(next(draws) * free)
        gap = min(
            max(
                abs(top + diameter / 2 - p.top - p.diameter / 2),
                abs(left + diameter / 2 - p.left - p.diameter / 2),
            )
            - (diameter + p.diameter) / 2
            for p in placed
        )
        if gap > best_gap:
            best, best_gap = (top, left), gap
    return best


# Shapes: inside tests over coordinates in -1..1 (x right, y down).


def _polygon(*corners: tuple[float, float]) -> Callable[[NDArray, NDArray], NDArray]:
    def inside(x: NDArray, y: NDArray) -> NDArray:
        result = np.zeros(x.shape, bool)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if y0 != y1:
                result ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        return result

    return inside


def _circle(x: NDArray, y: NDArray) -> NDArray:
    return x * x + y * y < 0.9


def _ring(x: NDArray, y: NDArray) -> NDArray:
    r2 = x * x + y * y
    return (r2 < 0.95) & (r2 > 0.27)


def _crescent(x: NDArray, y: NDArray) -> NDArray:
    return (x * x + y * y < 0.95) & ((x - 0.50) * (x - 0.50) + y * y > 0.52)


def _heart(x: NDArray, y: NDArray) -> NDArray:
    u, v = np.abs(x) / 0.95, (0.12 - y) / 0.85
    lobes = (u - 0.48) * (u - 0.48) + (v - 0.48) * (v - 0.48) < 0.27
    point = (u < (v + 0.95) * 0.80) & (u + np.maximum(v, 0) < 1.0) & (v < 0.6)
    return lobes | point


def _cross(x: NDArray, y: NDArray) -> NDArray:
    u, v = np.abs(x), np.abs(y)
    return (np.minimum(u, v) < 0.30) & (np.maximum(u, v) < 0.95)


_STAR = tuple(
    (round(radius * x, 4), round(radius * y + 0.06, 4))
    for (x, y), radius in zip(
        (
            (0.0, -1.0),
            (0.5878, -0.8090),
            (0.9511, -0.3090),
            (0.9511, 0.3090),
            (0.5878, 0.8090),
            (0.0, 1.0),
            (-0.5878, 0.8090),
            (-0.9511, 0.3090),
            (-0.9511, -0.3090),
            (-0.5878, -0.8090),
        ),
        (1.02, 0.42) * 5,
        strict=True,
    )
)

_INSIDE: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "circle": _circle,
    "square": _polygon((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)),
    "triangle": _polygon((0.0, -0.92), (0.95, 0.80), (-0.95, 0.80)),
    "star": _polygon(*_STAR),
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "bowtie": _polygon((-0.93, -0.80), (0.0, -0.12), (0.93, -0.80), (0.93, 0.80), (0.0, 0.12), (-0.93, 0.80)),
    "heart": _heart,
    "bolt": _polygon(
        (0.20, -0.95), (-0.70, 0.15), (-0.08, 0.15), (-0.25, 0.95), (0.70, -0.25), (0.05, -0.25)
    ),
}


@cache
def _coverage(shape: str, diameter: int, rotation: int) -> Float:
    """Share of each pixel inside the shape, read-only float32 [diameter, diameter]."""
    t = ROTATIONS[rotation]
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    n = diameter * SUPERSAMPLING
    axis = (np.arange(n) + 0.5) * (2 / n) - 1
    x, y = axis[None, :], axis[:, None]
    inside = _INSIDE[shape](cosine * x + sine * y, cosine * y - sine * x)
    blocks = inside.reshape(diameter, SUPERSAMPLING, diameter, SUPERSAMPLING)
    coverage: Float = (blocks.sum((1, 3)) / np.float32(SUPERSAMPLING**2)).astype(np.float32)
    coverage.flags.writeable = False
    return coverage


_OUTLINE = 3  # pixels


def _interior(coverage: Float) -> Float:
    """What lies at least `_OUTLINE` pixels inside a shape: the least coverage around each pixel."""
    padded = np.pad(coverage, _OUTLINE)
    steps = range(2 * _OUTLINE + 1)
    n = len(coverage)
    rows = np.min([padded[i : i + n] for i in steps], axis=0)
    least: Float = np.min([rows[:, i : i + n] for i in steps], axis=0)
    return least


# Textures: the weight of the second tone, float32 [diameter, diameter] in 0..1.


@cache
def _axes(n: int) -> tuple[Float, Float]:
    axis = np.arange(n, dtype=np.float32)
    return axis[None, :], axis[:, None]


def _fraction(x: Float) -> Float:
    result: Float = x - np.floor(x)
    return result


def _edge(distance: Float) -> Float:
    """0 where `distance` (pixels) is below -0.5, 1 above 0.5, linear between."""
    result: Float = np.clip(distance + np.float32(0.5), 0, 1)
    return result


def _tent(x: Float, period: float, phase: float) -> Float:
    """A triangle wave of slope 1 per pixel with values in 0..period/2, shifted by `phase` periods."""
    turns = _fraction(x * np.float32(1 / period) + np.float32(phase))
    result: Float = np.float32(period) * np.abs(turns - np.float32(0.5))
    return result


_DIRECTIONS = ((1.0, 0.0), (0.0, 1.0), (0.7071, 0.7071), (0.7071, -0.7071))


def _solid(p: Placement, noise: _Noise) -> Float:
    return np.zeros((p.diameter, p.diameter), np.float32)


def _striped(p: Placement, noise: _Noise) -> Float:
    x, y = _axes(p.diameter)
    a, b = _DIRECTIONS[p.direction]
    return _edge(
        _tent(np.float32(a) * x + np.float32(b) * y, p.period, p.phase[0]) - np.float32(p.period / 4)
    )


def _dotted(p: Placement, noise: _Noise) -> Float:
    x, y = _axes(p.diameter)
    u, v = _tent(x, p.period, p.phase[0]), _tent(y, p.period, p.phase[1])
    return _edge(np.float32(0.34 * p.period) - np.sqrt(u * u + v * v))


def _checkered(p: Placement, noise: _Noise) -> Float:
    x, y = _axes(p.diameter)
    period = np.float32(1.5 * p.period)
    u = _edge(_tent(x, float(period), p.phase[0]) - period / 4)
    v = _edge(_tent(y, float(period), p.phase[1]) - period / 4)
    return u + v - 2 * u * v


def _speckled(p: Placement, noise: _Noise) -> Float:
    n = -(-p.diameter // 2)
    cells = (noise(n, n) < np.float32(0.4)).astype(np.float32)
    return cells.repeat(2, axis=0).repeat(2, axis=1)[: p.diameter, : p.diameter]


def _shaded(p: Placement, noise: _Noise) -> Float:
    x, y = _axes(p.diameter)
    ramp = (x if p.direction % 2 else y) * np.float32(1 / (p.diameter - 1))
    ramp = 1 - ramp if p.direction >= 2 else ramp
    return np.broadcast_to(np.float32(1.2) * ramp, (p.diameter, p.diameter))


def _zigzag(p: Placement, noise: _Noise) -> Float:
    x, y = _axes(p.diameter)
    along, across = (x, y) if p.direction % 2 else (y, x)
    bent = across + _tent(along, 2 * p.period, p.phase[1])
    return _edge(_tent(bent, p.period, p.phase[0]) - np.float32(p.period / 4))


def _gridded(p: Placement, noise: _Noise) -> Float:
    x, y = _axes(p.diameter)
    return np.maximum(_edge(1 - _tent(x, p.period, p.phase[0])), _edge(1 - _tent(y, p.period, p.phase[1])))


OBJECT_TEXTURES: dict[str, Callable[[Placement, _Noise], Float]] = {
    "solid": _solid,
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "speckled": _speckled,
    "shaded": _shaded,
    "zigzag": _zigzag,
    "gridded": _gridded,
}


def _draw_background(plan: Layout, noise: _Noise) -> Float:
    """A muted, nearly grey canvas, float32 [64, 64, 3]."""
    u = plan.background_draw
    grey = np.float32(0.42 + 0.26 * u[0])
    tint = np.asarray([0.08 * (v - 0.5) for v in u[1:4]], np.float32)
    period, phase = 7.0 + 2.0 * u[4], (u[5], u[6])
    x, y = _axes(IMAGE_SIZE)
    pattern: Float
    if plan.background == "plain":
        pattern = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    elif plan.background == "lined":
        pattern = np.broadcast_to(_edge(1 - _tent(y, period, phase[0])) * 2, (IMAGE_SIZE, IMAGE_SIZE))
    elif plan.background == "tiled":
        cell = 2.2 * period
        columns, rows = _edge(_tent(x, cell, phase[0]) - cell / 4), _edge(_tent(y, cell, phase[1]) - cell / 4)
        pattern = 2 * (columns + rows - 2 * columns * rows) - 1
    elif plan.background == "wavy":
        bent = x + np.float32(0.7) * _tent(y, 2.4 * period, phase[1])
        pattern = _tent(bent, 1.3 * period, phase[0]) * np.float32(4 / (1.3 * period)) - 1
    elif plan.background == "grainy":
        pattern = 2 * noise(IMAGE_SIZE, IMAGE_SIZE) - 1
    else:
        pattern = np.float32(2.4) * _smooth(noise(5, 5)) - np.float32(1.2)
    level = grey + np.float32(0.14) * pattern
    canvas: Float = level[..., None] + tint
    return canvas


@cache
def _interpolation() -> tuple[NDArray[np.intp], Float]:
    """For each of 64 pixels, the coarse cell (of a 5-point axis) to its left and the weight of the next."""
    position = (np.arange(IMAGE_SIZE) + 0.5) * (4 / IMAGE_SIZE)
    cell = position.astype(np.intp)
    return cell, (position - cell).astype(np.float32)


def _smooth(coarse: Float) -> Float:
    """Bilinear enlargement, [5, 5] -> [64, 64]."""
    cell, weight = _interpolation()
    rows: Float = coarse[cell] * (1 - weight)[:, None] + coarse[cell + 1] * weight[:, None]
    result: Float = rows[:, cell] * (1 - weight) + rows[:, cell + 1] * weight
    return result
