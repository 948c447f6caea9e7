"""Matryoshka (Bussmann et al. 2025, arXiv 2503.17547): nested SAEs in one, over TopK or BatchTopK.

The first m latents alone must reconstruct too, for several m: the loss is the mean of the losses of all prefixes, so
that general concepts come first and are not split up when the SAE is wide.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator
from torch import Tensor

from pipeline.ranks import ALONE, Ranks
from pipeline.saes.batch_topk import PerBatch
from pipeline.saes.topk import PerToken, Selected, SelectedConfig, Selection


class MatryoshkaConfig(SelectedConfig):
    """Prefixes of the latents that must each reconstruct."""

    kind: Literal["matryoshka"] = "matryoshka"
    selection: Literal["topk", "batch_topk"] = "batch_topk"
    """What selects latents; over all of them, as without prefixes."""
    threshold_decay: float = Field(0.99, ge=0, lt=1)
    """Of the running mean behind the saved threshold of `batch_topk`."""
    auxk_coefficient: float = Field(0.2, ge=0)
    """As for the others, where the losses of five prefixes are added up: here they are averaged."""
    prefixes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    """Shares of the latents, ascending; the last is 1."""

    @field_validator("prefixes")
    @classmethod
    def _ascending_to_one(cls, prefixes: tuple[float, ...]) -> tuple[float, ...]:
        if sorted(set(prefixes)) != list(prefixes) or prefixes[-1:] != (1,):
            raise ValueError("prefixes must ascend and end in 1, for example [0.125, 0.5, 1]")
        return prefixes

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> Selected:
        sae = self.start(sample, tokens_per_image)
        selection: Selection = PerToken(self.k)
        if self.selection == "batch_topk":
            selection = PerBatch(self.k, self.threshold_decay, str(sample.device))
        ends = sorted({max(1, round(share * sae.n_latents)) for share in self.prefixes})
        return Selected(self, sae, sample, selection, ends, ranks)
