"""Matryoshka (Bussmann et al. 2025, arXiv 2503.17547): nested SAEs in one, selected as in TopK or BatchTopK.

For several m, the first m latents alone must reconstruct the activations too. The loss is the mean over these
prefixes, so general concepts take the first latents and are not split up when the SAE is wide.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator
from torch import Tensor

from patchsae.pipeline.training.objectives.batch_topk import PerBatch
from patchsae.pipeline.training.process_group import ALONE, Ranks
from patchsae.pipeline.training.selected import PerToken, Selected, SelectedConfig, Selection


class MatryoshkaConfig(SelectedConfig):
    """Each of several prefixes of the latents must reconstruct the activations alone."""

    kind: Literal["matryoshka"] = "matryoshka"
    selection: Literal["topk", "batch_topk"] = "batch_topk"
    """How latents are selected: among all of them, as without prefixes."""
    threshold_decay: float = Field(0.99, ge=0, lt=1)
    """Decay per step of the running mean that becomes the saved threshold, with `selection: batch_topk`."""
    auxk_coefficient: float = Field(0.2, ge=0)
    """Weight of AuxK. It stands beside the mean of the prefixes' losses: for five prefixes, 0.2 beside the
    mean weighs as much as 1 beside the sum."""
    prefixes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
    """The prefixes as shares of the latents, ascending; the last is 1."""

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
