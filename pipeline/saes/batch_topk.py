"""BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): the n k largest latents of a batch of n tokens.

A token may have more than k or fewer. For tokens that come alone, the saved SAE has a threshold: the running mean,
over steps, of the smallest value that was selected.

Shapes: n tokens, S latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.latents import SparseLatents
from pipeline.ranks import ALONE, Ranks
from pipeline.saes.base import Sae
from pipeline.saes.codes import SparseCodes
from pipeline.saes.encoding import TINY, Encoder
from pipeline.saes.topk import Selected, SelectedConfig

# A few tokens tell where the cut will be; entries from this many times k per token on are looked at.
_GENEROSITY = 2


class BatchTopKConfig(SelectedConfig):
    """k latents per token on average over the batch."""

    kind: Literal["batch_topk"] = "batch_topk"
    threshold_decay: float = Field(0.99, ge=0, lt=1)
    """Of the running mean behind the saved threshold."""

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> Selected:
        sae = self.start(sample, tokens_per_image)
        selection = PerBatch(self.k, self.threshold_decay, str(sample.device))
        return Selected(self, sae, sample, selection, [sae.n_latents], ranks)


class PerBatch:
    """The largest entries of the whole batch, over all ranks: k per token on average."""

    def __init__(self, k: int, decay: float, device: str) -> None:
        self.k = k
        self.decay = decay
        # [2]: the weighted sum of thresholds and the sum of weights, which corrects for the start at 0.
        self.state = {"threshold": torch.zeros(2, dtype=torch.float64, device=device)}

    def codes(self, encoder: Encoder, ranks: Ranks) -> SparseCodes:
        wanted = encoder.n_tokens * ranks.size * self.k
        bound = self._guess(encoder)
        codes = encoder.entries(slice(None), lambda h: bound)
        cut = self._cut(codes.values, wanted, ranks)
        # All ranks look again if one of them guessed too high.
        if ranks.any_(cut < bound).item():
            tiny = torch.full_like(bound, TINY)
            codes = encoder.entries(slice(None), lambda h: tiny)
            cut = self._cut(codes.values, wanted, ranks)
        # Just below: a latent is on above the threshold, and the smallest selected one is on.
        below = torch.nextafter(cut, torch.zeros_like(cut))
        seen = torch.stack([below, torch.ones_like(cut)]).double()
        self.state["threshold"].mul_(self.decay).add_(seen, alpha=1 - self.decay)
        return _only(codes, codes.values >= cut.clamp(min=TINY))

    def _guess(self, encoder: Encoder) -> Tensor:
        """A bound that the cut is hardly below: []."""
        h = encoder.probe().float()
        rank = min(h.numel(), _GENEROSITY * self.k * len(h))
        return h.flatten().topk(rank, sorted=False).values.min().clamp(min=TINY)

    @staticmethod
    def _cut(values: Tensor, wanted: int, ranks: Ranks) -> Tensor:
        """The smallest of the `wanted` largest values over all ranks, 0 if there are fewer: []."""
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


def _only(codes: SparseCodes, kept: Tensor) -> SparseCodes:
    """The entries where the mask `kept` [nnz] is set."""
    entries = codes.entries
    ends = torch.nn.functional.pad(kept.cumsum(0), (1, 0))
    return SparseCodes(
        SparseLatents(ends[entries.offsets], entries.latent[kept], codes.values[kept], entries.n_latents)
    )
