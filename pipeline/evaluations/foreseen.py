"""What the evaluations `statistics`, `masking` and `reconstruction` predict in the same way."""

from __future__ import annotations

from dataclasses import dataclass

from patchsae.pipeline.core.machine import Probe, memory, products, waiting
from patchsae.pipeline.core.prediction import Upstreams
from patchsae.pipeline.evaluations.evaluation import ImagesConfig
from patchsae.pipeline.images.tables import expected_classes, expected_rows
from patchsae.storage.activations import ActivationTemplate

# Latents per token that are taken to be above 0: the paper's SAEs have from 30 to 120.
L0 = 64
_PASSES = 6


@dataclass(frozen=True)
class Foreseen:
    """Numbers of an evaluation. `n_parts` is the number of its parts, one per shard that holds one of its images."""

    n_images: int
    n_classes: int
    n_latents: int
    tokens: int
    width: int
    n_parts: int

    @property
    def l0(self) -> int:
        """Latents above 0 per token, about; in a narrow SAE fewer."""
        return min(L0, max(1, self.n_latents // 16))

    def encoding(self) -> list[tuple[Probe, float]]:
        """Computing the latents of every token, and adding them up."""
        dense = float(self.n_images) * self.tokens * self.width * self.n_latents
        moved = _PASSES * 4.0 * self.n_images * self.tokens * self.width * self.l0
        return [
            (products("bfloat16", self.width), dense),
            (memory(), moved + 8 * dense / self.width),
            waiting(2.0, "starting the processes of an evaluation"),
        ]


def foresee(config: ImagesConfig, split: str, inputs: Upstreams) -> Foreseen | None:
    """What is known of an evaluation of these images; None if too little is known.

    Raises UserError if the dataset is known to have no such split or class.
    """
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
    return Foreseen(n_images, len(names), n_latents, tokens, width, n_parts)
