"""Classifies a block of images under every mask, for the evaluation `masking`.

Shapes: B images of T tokens, of which R are replaced; d channels, E embedding, S latents, C classes, K ranked
latents, M rankings, k the number of `ks`, A readings: that of the class, and of every attribute beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.classification.zero_shot import ZeroShot, all_on_top
from patchsae.pipeline.evaluations.masking.distinct import Distinct, fired_in, signatures
from patchsae.pipeline.evaluations.masking.settings import ReconstructionError
from patchsae.pipeline.evaluations.masking.sweep import sweep
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.latents import Latents

MODES = ("on", "off")
# Activations that go through the tail at once: enough images for its products, and few enough for the cache.
_BYTES_AT_ONCE = 24_000_000


@dataclass(frozen=True)
class Reading:
    """What is read off a block of images: a classifier, and the values that it should find."""

    embeddings: Tensor  # [V, E], of V values
    label_sets: Tensor  # [B, V] bool

    def is_right(self, features: Tensor, images: Tensor) -> np.ndarray:
        """Whether the values of `images` [n] are on top: features [n, E] -> bool [n]."""
        scores = features @ self.embeddings.T
        return all_on_top(scores, self.label_sets.index_select(0, images)).cpu().numpy()


@dataclass(frozen=True)
class Order:
    """The latents of a ranking in their order, and where its images are in it."""

    latents: Tensor  # [C, K] or [1, K] int64
    off: Tensor | None = None
    """With `ablation: mean`: what the top k latents give to a token where they are off, [C, k, d] or [1, k, d]."""
    base: int = 0
    """Which of the bases, the activations with all latents off, belongs to it."""
    by_prediction: bool = False
    """Whether it is that of the class an image is classified as, and not of its own."""

    def of(self, classes: Tensor) -> Tensor:
        """The order for each of the images, whose classes are given: [B, K], or [1, K] if it is one for all."""
        return self.latents if len(self.latents) == 1 else self.latents[classes]

    def off_of(self, classes: Tensor, step: int) -> Tensor:
        """`off` of each image at a step of the sweep: [B, 1, d] or [1, 1, d]."""
        assert self.off is not None
        found = self.off if len(self.off) == 1 else self.off[classes]
        return found[:, step, None]


@dataclass(frozen=True)
class Outcomes:
    """Whether each image of a block is read correctly, for each way of replacing activations."""

    original: np.ndarray  # [A, B] bool
    reconstruction: np.ndarray  # [A, B]: all latents on
    bias: np.ndarray  # [bases, A, B]: all latents off
    masked: np.ndarray  # [M, 2 (on, off), k, A, B]


class _Tail:
    """Gathers replaced activations and classifies many at once."""

    def __init__(self, x: Tensor, tokens: range, readings: Sequence[Reading], zero_shot: ZeroShot) -> None:
        self.x, self.tokens, self.readings, self.zero_shot = x, tokens, readings, zero_shot
        n = max(1, min(_BYTES_AT_ONCE // (4 * x[0].numel()), 4096))
        self._full = x.new_empty(n, *x.shape[1:])
        self._waiting: list[tuple[np.ndarray, Tensor]] = []
        self._n = 0

    def add(self, into: np.ndarray, images: Tensor, base: Tensor, change: Tensor, sign: int = 1) -> None:
        """Classifies `images` [n] with `base + sign change` in place of their activations.

        `change` [n, R, d], and `base` of the same shape or [1, 1, d]. `into` [A, n] gets what is right, in `finish`
        at the latest.
        """
        for start in range(0, len(images), len(self._full)):
            some = slice(start, start + len(self._full))
            own = base if len(base) == 1 else base[some]
            self._add(into[:, some], images[some], own, change[some], sign)

    def _add(self, into: np.ndarray, images: Tensor, base: Tensor, change: Tensor, sign: int) -> None:
        n = len(images)
        if self._n + n > len(self._full):
            self.finish()
        place, first, last = self._full[self._n : self._n + n], self.tokens.start, self.tokens.stop
        torch.add(base, change, alpha=sign, out=place[:, first:last])
        if last - first < self.x.shape[1]:
            place[:, :first], place[:, last:] = self.x[images, :first], self.x[images, last:]
        self._waiting.append((into, images))
        self._n += n

    def finish(self) -> None:
        """Classifies what is waiting."""
        if not self._n:
            return
        features = self.zero_shot.features(self._full[: self._n])
        images = torch.cat([images for _, images in self._waiting])
        right = np.stack([reading.is_right(features, images) for reading in self.readings])
        start = 0
        for into, one in self._waiting:
            into[:] = right[:, start : start + len(one)]
            start += len(one)
        self._waiting, self._n = [], 0


@torch.inference_mode()
def classify(
    x: Tensor,
    latents: Latents,
    labels: Tensor,
    readings: Sequence[Reading],
    orders: Sequence[Order],
    ks: np.ndarray,
    sae: Sae,
    zero_shot: ZeroShot,
    modes: Sequence[str],
    tokens: range,
    keys: Tensor,
    error: ReconstructionError = "dropped",
    off: Sequence[Tensor] = (),
    classes: Tensor | None = None,
) -> Outcomes:
    """What is right of a block of images in every way.

    `x` [B, T, d]. `latents` are those of the R tokens per image in `tokens`, whose activations are replaced. `labels`
    [B] are the classes whose latents rankings by label take. `readings` begin with the class. `ks` ascends. `keys` as
    `keys_of` makes them. `off` has what all latents together give to a token where they are off, [d] for each base;
    nothing if it is empty. `classes` [V] are the ids of the classes that the first reading tells apart, if they are
    not all.
    """
    images = torch.arange(len(x), device=x.device)
    replaced = x[:, tokens.start : tokens.stop]
    x_hat = (latents.decode(latents.value, sae.W_dec) + sae.b_dec).view_as(replaced)
    features = zero_shot.features(x)
    original = np.stack([reading.is_right(features, images) for reading in readings])
    predicted = (features @ readings[0].embeddings.T).argmax(dim=1)
    predicted = predicted if classes is None else classes[predicted]

    bases = [(sae.b_dec + one)[None, None] for one in off or [torch.zeros_like(sae.b_dec)]]
    all_on = x_hat
    if error == "kept":
        bases, all_on = [base + (replaced - x_hat) for base in bases], replaced

    tail, nothing = _Tail(x, tokens, readings, zero_shot), torch.zeros(1, 1, 1, device=x.device)
    n_of_one = (len(readings), len(x))
    reconstruction, bias = np.zeros(n_of_one, bool), np.zeros((len(bases), *n_of_one), bool)
    tail.add(reconstruction, images, all_on, nothing.expand_as(replaced))
    for base, into in zip(bases, bias, strict=True):
        tail.add(into, images, base, nothing.expand_as(replaced))
    masked = np.zeros((len(orders), len(MODES), len(ks), *n_of_one), bool)
    if not orders or not len(ks):
        tail.finish()
        return Outcomes(original, reconstruction, bias, masked)

    mine = [order.of(predicted if order.by_prediction else labels) for order in orders]
    # Where a latent that is off is not 0, a mask also changes images on which its latents do not fire.
    fired = None if off else fired_in(latents, len(x))
    distinct = Distinct.of([signatures(fired, ranking, ks, keys, len(x)) for ranking in mine])
    pieces: list[tuple[int, np.ndarray, np.ndarray]] = []
    for order, ranking, number, first in zip(orders, mine, distinct.number, distinct.first, strict=True):
        steps = np.flatnonzero(first.any(axis=1))
        if not len(steps):
            continue
        of_images = predicted if order.by_prediction else labels
        sums = sweep(latents, len(x), ranking, ks[: int(steps[-1]) + 1], sae.W_dec)
        for step, R_k in enumerate(sums):
            if not first[step].any():
                continue
            change = R_k.view_as(replaced)
            if order.off is not None:
                change = change - order.off_of(of_images, step)
            chosen, base, top = images, bases[order.base], all_on
            if not first[step].all():
                chosen = torch.from_numpy(np.flatnonzero(first[step])).to(x.device)
                change, top = change[chosen], top[chosen]
                base = base if len(base) == 1 else base[chosen]
            for mode in modes:
                into = np.zeros((len(readings), len(chosen)), bool)
                tail.add(into, chosen, *((base, change, 1) if mode == "on" else (top, change, -1)))
                pieces.append((MODES.index(mode), number[step, first[step]], into))
    tail.finish()

    # A column per distinct mask. Number 0 is the mask without latents, which differs from image to image.
    outcomes = np.zeros((len(MODES), len(readings), distinct.n), bool)
    for i, numbers, into in pieces:
        outcomes[i][:, numbers] = into
    is_nothing = (distinct.number == 0)[:, :, None]
    of_bases = np.stack([bias[order.base] for order in orders])[:, None]
    for i, without in enumerate((of_bases, reconstruction)):
        if MODES[i] in modes:
            masked[:, i] = np.where(
                is_nothing, without, outcomes[i][:, distinct.number].transpose(1, 2, 0, 3)
            )
    return Outcomes(original, reconstruction, bias, masked)
