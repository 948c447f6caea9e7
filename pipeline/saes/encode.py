"""The sparse latents of tokens under a trained SAE; every evaluation encodes with `LatentEncoder`.

As in training (`pipeline.saes.sparse.encoder`), a bfloat16 product finds the latents that may be on, and
float32 then decides which are on and computes their values. The bfloat16 product has a margin for its
rounding errors, so it misses no latent that float32 finds, except for the rounding of float32 itself.

Shapes: n tokens, d channels, S latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.encoder import (
    TINY,
    Bound,
    Encoder,
    EncoderWeights,
    above_zero,
    bound_of_largest,
    found_in_blocks,
    largest,
    max_density,
)
from patchsae.pipeline.saes.sparse.latents import (
    DenseLatents,
    Latents,
    SparseLatents,
    at_places,
    joined,
)


@dataclass(frozen=True)
class EncoderChoice:
    """How latents are found.

    It decides the last bits of sums, so resumed work must keep the choice it began with.
    """

    precision: str
    """Precision of the product that finds latents: `bfloat16` or `float32`."""
    max_density: float
    """Dense products are used where a larger share of latents than this is above 0."""

    @classmethod
    def for_device(cls, device: str, width: int, n_latents: int) -> EncoderChoice:
        """The fastest choice on a device."""
        place = torch.device(device)
        has_bfloat16 = place.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
        precision = "bfloat16" if has_bfloat16 else "float32"
        return cls(precision, max_density(place, width, n_latents, getattr(torch, precision)))


class LatentEncoder:
    """Encodes tokens with one SAE, whose weights are prepared once."""

    def __init__(self, sae: Sae, choice: EncoderChoice | None = None) -> None:
        self.sae = sae
        device = str(sae.b_enc.device)
        self.choice = choice or EncoderChoice.for_device(device, sae.width, sae.n_latents)
        # With this bias, h > 0 says that a latent is above its threshold.
        bias = sae.b_enc if sae.threshold is None or sae.k is not None else sae.b_enc - sae.threshold
        dtype = getattr(torch, self.choice.precision)
        # If the product only finds entries, and others compute their values, it must not miss any.
        only_finds = dtype != torch.float32 or sae.threshold is not None
        self._weights = EncoderWeights(sae.W_enc.T.contiguous(), bias, dtype, never_below=only_finds)

    @torch.inference_mode()
    def blocks(self, x: Tensor) -> Iterator[tuple[slice, Latents]]:
        """The latents of tokens [n, d], block by block of tokens: sparse, or dense if many are above 0."""
        if not len(x):
            return
        encoder = Encoder(x - self.sae.b_dec, self._weights)
        bias = self.sae.b_enc if self._weights.never_below else None
        for rows, found in found_in_blocks(encoder, self._bound(encoder), self.choice.max_density, bias):
            yield rows, DenseLatents(self.sae.encode(x[rows])) if found is None else self._on(found)

    def block(self, x: Tensor) -> Latents:
        """The latents of tokens [n, d] in one piece: sparse, unless one dense block holds all of them.

        That is so for `tokens_per_block` tokens at most.
        """
        found = []
        for rows, latents in self.blocks(x):
            if rows == slice(0, len(x)):
                return latents
            found.append(latents.sparse())
        if not found:
            return at_places(x.new_empty(0, dtype=torch.int64), x.new_empty(0), 0, self.sae.n_latents)
        return joined(found)

    def __call__(self, x: Tensor) -> SparseLatents:
        """The sparse latents of tokens [n, d]: exactly those above 0."""
        return self.block(x).sparse()

    def _bound(self, encoder: Encoder) -> Bound:
        """The bound that every latent which is on reaches, whatever rounding did to the product."""
        k = self.sae.k
        if k is None or self.sae.threshold is not None:
            return above_zero
        raised = encoder.most_raised()
        # The k-th largest h may itself have been rounded up, by at most 2^-8 of its value.
        return lambda h, rows: (bound_of_largest(h, k) * (1 - 2**-7) - raised[rows]).clamp_(min=TINY)

    def _on(self, latents: SparseLatents) -> SparseLatents:
        """Those of the found entries that are on."""
        sae = self.sae
        latents = latents.where(
            latents.value > (0 if sae.threshold is None else latents.spread(sae.threshold))
        )
        return latents if sae.k is None else largest(latents, sae.k).sparse()
