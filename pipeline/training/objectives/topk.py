"""TopK (Gao et al. 2024, arXiv 2406.04093): the k largest latents of each token, no sparsity penalty.

`f = TopK(relu(h))`. The loss is `mean_n |x - x_hat|^2 / V`, with V the mean squared distance of the first
batch's tokens from their mean, plus AuxK. `pipeline.training.selected` computes it.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from patchsae.pipeline.training.process_group import ALONE, Ranks
from patchsae.pipeline.training.selected import PerToken, Selected, SelectedConfig


class TopKConfig(SelectedConfig):
    """The k largest latents of each token are on."""

    kind: Literal["topk"] = "topk"

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> Selected:
        sae = self.start(sample, tokens_per_image)
        return Selected(self, sae, sample, PerToken(self.k), [sae.n_latents], ranks)
