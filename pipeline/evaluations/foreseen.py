"""What several evaluations predict in the same way."""

from __future__ import annotations

import math
from dataclasses import dataclass

from patchsae.pipeline.core.machine import memory, products, waiting
from patchsae.pipeline.core.prediction import Probe, Upstreams
from patchsae.pipeline.evaluations.evaluation import ImagesConfig
from patchsae.pipeline.images.tables import expected_classes, expected_rows
from patchsae.pipeline.saes.sae import check_width, expected_width
from patchsae.storage.activations import ActivationTemplate

# Latents per token that are taken to be above 0 if the SAE does not tell: the paper's SAEs have from 30 to 120.
_L0 = 64
_PASSES = 6
# Above about this share of latents, evaluations compute dense products in float32 (`EncoderChoice.max_density`).
_DENSE = 0.1


@dataclass(frozen=True)
class Foreseen:
    """Numbers of an evaluation.

    `n_parts` is the number of its parts, one per shard that holds one of its images. `l0` is about the number of
    latents above 0 per token.
    """

    n_images: int
    n_classes: int
    n_latents: int
    tokens: int
    width: int
    n_parts: int
    l0: float

    @property
    def is_dense(self) -> bool:
        """Whether so many latents are on that products are computed densely, as for a ReLU SAE of a few steps."""
        return self.l0 > _DENSE * self.n_latents

    @property
    def n_pairs(self) -> float:
        """The number of (token, latent) pairs."""
        return float(self.n_images) * self.tokens * self.n_latents

    def encoding(self) -> list[tuple[Probe, float]]:
        """Computing the latents of every token, and adding sparse ones up."""
        found = products("float32" if self.is_dense else "bfloat16", self.width)
        moved = 8 * self.n_pairs
        if not self.is_dense:
            moved += _PASSES * 4.0 * self.n_images * self.tokens * self.width * self.l0
        return [
            (found, self.n_pairs * self.width),
            (memory(), moved),
            waiting(2.0, "starting the processes of an evaluation"),
        ]

    def decoding(self, n_latents: int | None = None) -> list[tuple[Probe, float]]:
        """Decoding all latents, or `n_latents` of them, where they are dense. `encoding` has it for sparse ones."""
        if not self.is_dense:
            return []
        n = self.n_latents if n_latents is None else n_latents
        return [(products("float32", self.width), float(self.n_images) * self.tokens * self.width * n)]


def distinct(n_draws: float, n_latents: int) -> float:
    """About how many of the latents occur among so many draws of any of them."""
    return n_latents * -math.expm1(-n_draws / n_latents)


def foresee(config: ImagesConfig, split: str, inputs: Upstreams) -> Foreseen | None:
    """What is known of an evaluation of these images; None if too little is known.

    Raises UserError if the dataset is known to have no such split or class, or the SAE is known to take activations
    of another width.
    """
    check_width(expected_width(inputs["sae"]), inputs["activations"].fact("width"))
    images, activations = inputs["images"], inputs["activations"]
    n_images = expected_rows(images, split, config.classes, config.limit)
    names = expected_classes(images)
    facts = [activations.fact("tokens_per_image"), activations.fact("width"), inputs["sae"].fact("n_latents")]
    n_all = activations.fact("n_images")
    if n_images is None or names is None or n_all is None or None in facts:
        return None
    tokens, width, n_latents = facts
    template = ActivationTemplate.plan(n_all, tokens, width, "float16")
    n_parts = max(1, -(-n_images // template.shard_images))
    l0 = inputs["sae"].fact("l0") or min(_L0, max(1, n_latents // 16))
    return Foreseen(n_images, len(names), n_latents, tokens, width, n_parts, l0)
