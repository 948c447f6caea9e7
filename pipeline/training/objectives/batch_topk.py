"""BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): the n k largest latents of a batch of n tokens are on.

A single token may have more or fewer than k. The saved SAE has a threshold instead, so that it does not
depend on the other tokens of a batch: the running mean, over steps, of the smallest value that was selected.

Shapes: n tokens, S latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.encoder import TINY, Encoder
from patchsae.pipeline.saes.sparse.latents import SparseLatents
from patchsae.pipeline.training.process_group import ALONE, Ranks
from patchsae.pipeline.training.selected import Selected, SelectedConfig

# The smallest selected value is guessed from a few tokens: as the value that this many times k entries per
# token reach, so that the guess is hardly ever too high.
_GENEROSITY = 2


class BatchTopKConfig(SelectedConfig):
    """The largest latents of the whole batch are on, k per token on average."""

    kind: Literal["batch_topk"] = "batch_topk"
    threshold_decay: float = Field(0.99, ge=0, lt=1)
    """Decay per step of the running mean that becomes the saved threshold."""

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> Selected:
        sae = self.start(sample, tokens_per_image)
        selection = PerBatch(self.k, self.threshold_decay, str(sample.device))
        return Selected(self, sae, sample, selection, [sae.n_latents], ranks)


class PerBatch:
    """Selects the largest entries of the whole batch, over all ranks: k per token on average."""

    def __init__(self, k: int, decay: float, device: str) -> None:
        self.k = k
        self.decay = decay
        # [2]: the weighted sum of thresholds and the sum of the weights. Dividing by the latter corrects for
        # the start at 0.
        self.state = {"threshold": torch.zeros(2, dtype=torch.float64, device=device)}

    def latents(self, encoder: Encoder, ranks: Ranks) -> SparseLatents:
        wanted = encoder.n_tokens * ranks.size * self.k
        bound = self._guess(encoder)
        latents = encoder.entries(slice(None), lambda *_: bound)
        cut = self._cut(latents.value, wanted, ranks)
        # If the guess of any rank was too high, all ranks search again, among all positive entries.
        if ranks.any_(cut < bound).item():
            tiny = torch.full_like(bound, TINY)
            latents = encoder.entries(slice(None), lambda *_: tiny)
            cut = self._cut(latents.value, wanted, ranks)
        # A saved latent is on strictly above its threshold, and the smallest selected entry is on. So the
        # threshold is the next number below that entry.
        below = torch.nextafter(cut, torch.zeros_like(cut))
        seen = torch.stack([below, torch.ones_like(cut)]).double()
        self.state["threshold"].mul_(self.decay).add_(seen, alpha=1 - self.decay)
        return latents.where(latents.value >= cut.clamp(min=TINY))

    def _guess(self, encoder: Encoder) -> Tensor:
        """A bound that is hardly ever above the cut: []."""
        h = encoder.probe().float()
        rank = min(h.numel(), _GENEROSITY * self.k * len(h))
        return h.flatten().topk(rank, sorted=False).values.min().clamp(min=TINY)

    @staticmethod
    def _cut(values: Tensor, wanted: int, ranks: Ranks) -> Tensor:
        """The cut: the smallest of the `wanted` largest values over all ranks, 0 if there are fewer: []."""
        if ranks.size > 1:
            largest = values.topk(min(wanted, len(values)), sorted=False).values
            values = ranks.gather(torch.nn.functional.pad(largest, (0, wanted - len(largest))))
        if len(values) < wanted:
            return values.new_zeros(())
        return values.kthvalue(len(values) - wanted + 1).values

    def sae(self, sae: Sae) -> Sae:
        total, weight = self.state["threshold"]
        threshold = (total / weight if weight else total).float()
        return Sae(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, threshold.expand(sae.n_latents).clone())
