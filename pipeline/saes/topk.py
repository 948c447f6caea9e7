"""TopK (Gao et al. 2024, arXiv 2406.04093): the k largest latents of each token, no sparsity penalty.

`f = TopK(relu(h))`, loss `mean_n |x - x_hat|^2 / V` with V the mean squared distance of the first batch's tokens from
their mean, plus AuxK (`pipeline.saes.auxk`).

Shapes: n tokens, d channels, S latents, G prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from pipeline.latents import SparseLatents
from pipeline.ranks import ALONE, Ranks
from pipeline.saes.autoencoder import Autoencoder
from pipeline.saes.auxk import AuxK
from pipeline.saes.base import Sae
from pipeline.saes.codes import SparseCodes
from pipeline.saes.encoding import Encoder, top_codes
from pipeline.saes.objective import Gradients, TrainedSaeConfig
from storage.errors import UserError


class SelectedConfig(TrainedSaeConfig):
    """What the objectives that select latents, rather than penalise them, have in common."""

    k: int = Field(32, ge=1)
    """Latents per token."""
    auxk_coefficient: float = Field(1.0, ge=0)
    """Weight of the loss in which dead latents explain what is left; 0 leaves them dead."""
    auxk: int | None = Field(None, ge=1)
    """How many dead latents of each token take part; half the channels if not given."""

    def start(self, sample: Tensor, tokens_per_image: int) -> Sae:
        """The weights at step 0. Raises UserError if k does not fit."""
        n_latents = self.count_latents(sample.shape[1])
        if self.k > n_latents:
            raise UserError(f"k is {self.k}, but the SAE has {n_latents} latents; set a smaller k.")
        return super().start(sample, tokens_per_image)


class TopKConfig(SelectedConfig):
    """The k largest latents of each token."""

    kind: Literal["topk"] = "topk"

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> Selected:
        sae = self.start(sample, tokens_per_image)
        return Selected(self, sae, sample, PerToken(self.k), [sae.n_latents], ranks)


class Selection(Protocol):
    """Which latents of a batch are on."""

    state: dict[str, Tensor]

    def codes(self, encoder: Encoder, ranks: Ranks) -> SparseCodes:
        """Their entries, with values of 0 or more."""
        ...

    def sae(self, sae: Sae) -> Sae:
        """The SAE that selects as this does, for tokens that come alone."""
        ...


class PerToken:
    """The k largest of each token."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.state: dict[str, Tensor] = {}

    def codes(self, encoder: Encoder, ranks: Ranks) -> SparseCodes:
        return top_codes(encoder, self.k)

    def sae(self, sae: Sae) -> Sae:
        return Sae(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, k=self.k)


def total_variance(sample: Tensor) -> float:
    """Mean squared distance of tokens [n, d] from their mean."""
    x = sample.double()
    return (x - x.mean(dim=0)).square().sum(dim=1).mean().item()


class Selected:
    """An objective under training that selects latents, see `pipeline.saes.objective.Objective`.

    `prefixes`: the loss is the mean over reconstructions from the first so many latents (Matryoshka); all S for a
    plain one.
    """

    def __init__(
        self,
        config: SelectedConfig,
        start: Sae,
        sample: Tensor,
        selection: Selection,
        prefixes: Sequence[int],
        ranks: Ranks = ALONE,
    ) -> None:
        self.autoencoder = Autoencoder(start, config.dead_feature_window, ranks)
        self.selection = selection
        self.variance = total_variance(sample)
        self.dtype = getattr(torch, config.precision)
        self.auxk = AuxK(config.auxk or max(1, sample.shape[1] // 2), config.auxk_coefficient)
        device = start.b_enc.device
        self.n_prefixes = len(prefixes)
        # The group of each latent: the first prefix that holds it.
        self.group = torch.bucketize(torch.arange(start.n_latents), torch.tensor(prefixes), right=True).to(
            device
        )
        self.parameters = self.autoencoder.parameters
        self.state = {"steps_since_fired": self.autoencoder.steps_since_fired, **selection.state}

    def n_dead(self) -> int:
        return int(self.autoencoder.dead().sum())

    @torch.no_grad()
    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """The loss and its gradients, `W_dec`'s without its part along `W_dec`."""
        model = self.autoencoder
        model.begin()
        n = len(x) * model.ranks.size
        centred = x - model.b_dec
        codes = self.selection.codes(Encoder(centred, model.encoder, model.b_enc, self.dtype), model.ranks)
        f = codes.values
        finer = self._by_prefix(codes)
        G = self.n_prefixes
        # The reconstruction of each prefix, [n, G, d], then its error.
        error = finer.decode(f, model.W_dec).unflatten(0, (len(x), G))
        if G > 1:
            error.cumsum_(dim=1)
        error -= centred.unsqueeze(1)
        reconstruction = error.square().sum(dtype=torch.float64).item() / (n * G * self.variance)
        x_hat = x + error[:, -1]
        residual = -error[:, -1]
        # A latent is part of every prefix from its own group on.
        d_x_hat = error.mul_(2 / (n * G * self.variance))
        if G > 1:
            d_x_hat = d_x_hat.flip(1).cumsum_(dim=1).flip(1)
        by_group = d_x_hat.flatten(0, 1)
        d_h = finer.products(by_group, model.W_dec).mul_(f > 0)
        model.add_decoding(finer, f, by_group)
        model.add("b_dec", d_x_hat[:, 0].sum(dim=0))
        model.add_encoding(codes, d_h, centred)
        auxiliary = self.auxk.add(model, centred, residual, n * self.variance, self.dtype)
        model.finish(codes.per_latent(f) > 0)
        return Gradients(
            x_hat=x_hat,
            reconstruction=reconstruction,
            penalty=0.0,
            auxiliary=auxiliary,
            l1_norm=f.sum(dtype=torch.float64).item() / n,
            l0=torch.count_nonzero(f).item() / n,
        )

    def _by_prefix(self, codes: SparseCodes) -> SparseCodes:
        """The same entries with a row per token and group: [n G] rows. Latents ascend, so only offsets change."""
        entries = codes.entries
        if self.n_prefixes == 1:
            return codes
        row = entries.token() * self.n_prefixes + self.group[entries.latent.long()]
        n_rows = entries.n_tokens * self.n_prefixes
        offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=row.device)
        torch.cumsum(torch.bincount(row, minlength=n_rows), 0, out=offsets[1:])
        return SparseCodes(SparseLatents(offsets, entries.latent, entries.value, entries.n_latents))

    def sae(self) -> Sae:
        return self.selection.sae(self.autoencoder.sae())
