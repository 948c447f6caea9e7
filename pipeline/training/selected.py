"""What `topk`, `batch_topk` and `matryoshka` share: they select the latents that are on and penalise none.

The loss is the mean over prefixes g of `mean_n |x - x_hat_g|^2 / V`, plus AuxK (`pipeline.training.auxk`).
x_hat_g is the reconstruction from the first prefixes[g] latents, and V is the mean squared distance of the
first batch's tokens from their mean.

Shapes: n tokens of this rank (the variable `n` counts those of all ranks), d channels, S latents, G prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor

from patchsae.pipeline.core.sums import total
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.encoder import Encoder, EncoderWeights, top_latents
from patchsae.pipeline.saes.sparse.latents import SparseLatents
from patchsae.pipeline.training.auxk import AuxKConfig
from patchsae.pipeline.training.objective import Gradients
from patchsae.pipeline.training.parameters import Autoencoder
from patchsae.pipeline.training.process_group import ALONE, Ranks
from patchsae.storage.errors import UserError


class SelectedConfig(AuxKConfig):
    """Base of the configs of objectives that select latents instead of penalising them."""

    k: int = Field(32, ge=1)
    """Latents per token. A selection over the batch (`batch_topk`) keeps k per token on average."""

    def check(self, n_latents: int) -> None:
        if self.k > n_latents:
            raise UserError(f"k is {self.k}, but the SAE has {n_latents} latents; set a smaller k.")

    def start(self, sample: Tensor, tokens_per_image: int) -> Sae:
        """The weights at step 0. Raises UserError if k is larger than the number of latents."""
        self.check(self.count_latents(sample.shape[1]))
        return super().start(sample, tokens_per_image)


class Selection(Protocol):
    """Decides which latents of a batch are on."""

    state: dict[str, Tensor]
    """What the next step depends on, as in `pipeline.training.objective.Objective`."""

    def latents(self, encoder: Encoder, ranks: Ranks) -> SparseLatents:
        """The entries of the latents that are on, with values of 0 or more."""
        ...

    def sae(self, sae: Sae) -> Sae:
        """`sae` with this selection, in a form that does not need the other tokens of a batch."""
        ...


class PerToken:
    """Selects the k largest latents of each token."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.state: dict[str, Tensor] = {}

    def latents(self, encoder: Encoder, ranks: Ranks) -> SparseLatents:
        return top_latents(encoder, self.k)

    def sae(self, sae: Sae) -> Sae:
        return Sae(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, k=self.k)


def total_variance(sample: Tensor) -> float:
    """Mean squared distance of tokens [n, d] from their mean."""
    x = sample.double()
    return (x - x.mean(dim=0)).square().sum(dim=1).mean().item()


class Selected:
    """An objective that selects latents (see `pipeline.training.objective.Objective`).

    `prefixes` [G] are ascending numbers of latents, the last of them S. `topk` and `batch_topk` have only S.
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
        self.selection = selection
        self.variance = total_variance(sample)
        self.dtype = getattr(torch, config.precision)
        self.autoencoder = Autoencoder(start, config.dead_feature_window, ranks, self.dtype)
        self.auxk = config.auxiliary_loss(sample.shape[1])
        device = start.b_enc.device
        self.n_prefixes = len(prefixes)
        # The group of each latent [S]: the number of the first prefix that holds it.
        self.group = torch.bucketize(torch.arange(start.n_latents), torch.tensor(prefixes), right=True).to(
            device
        )
        self.parameters = self.autoencoder.parameters
        self.state = {**self.autoencoder.state, **selection.state}

    def n_dead(self) -> int:
        return int(self.autoencoder.dead().sum())

    @torch.no_grad()
    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """The loss and its gradients; that of `W_dec` has no component along its rows."""
        model = self.autoencoder
        model.begin()
        n = len(x) * model.ranks.size
        centred = x - model.b_dec
        latents = self.selection.latents(
            Encoder(centred, EncoderWeights(model.encoder, model.b_enc, self.dtype)), model.ranks
        )
        f = latents.value
        finer = self._by_prefix(latents)
        G = self.n_prefixes
        # Row (t, j) of `finer` decodes the latents of group j. Summed over j <= g, that is x_hat_g - b_dec,
        # and less `centred` it is the error x_hat_g - x: [n, G, d].
        error = finer.decode(f, model.W_dec).unflatten(0, (len(x), G))
        if G > 1:
            error.cumsum_(dim=1)
        error -= centred.unsqueeze(1)
        reconstruction = total(error.square()) / (n * G * self.variance)
        x_hat = x + error[:, -1]
        residual = -error[:, -1]
        # L = sum |x_hat_g - x|^2 / (n G V), so dL/dx_hat_g = 2 (x_hat_g - x) / (n G V).
        # A latent of group j is in every prefix g >= j, so it gets the sum of dL/dx_hat_g over g >= j.
        d_x_hat = error.mul_(2 / (n * G * self.variance))
        if G > 1:
            d_x_hat = d_x_hat.flip(1).cumsum_(dim=1).flip(1)
        by_group = d_x_hat.flatten(0, 1)
        # dL/df = (that sum) W_dec^T, and f = relu(h) at the entries, so dL/dh = dL/df where f > 0.
        # b_dec is in every prefix, so through the decoder it gets the sum over g >= 0 and over tokens.
        d_h = finer.products(by_group, model.W_dec).mul_(f > 0)
        model.add_decoding(finer, f, by_group)
        model.add("b_dec", d_x_hat[:, 0].sum(dim=0))
        model.add_encoding(latents, d_h, centred)
        auxiliary = self.auxk.add(model, centred, residual, n * self.variance, self.dtype)
        model.finish(latents.per_latent(f) > 0)
        return Gradients(
            x_hat=x_hat,
            reconstruction=reconstruction,
            penalty=0.0,
            auxiliary=auxiliary,
            l1_norm=total(f) / n,
            l0=torch.count_nonzero(f).item() / n,
        )

    def _by_prefix(self, latents: SparseLatents) -> SparseLatents:
        """The same entries with one row per token and group: [n G] rows.

        The latents of a token ascend, so its entries are already in order of groups: only the offsets change.
        """
        if self.n_prefixes == 1:
            return latents
        row = latents.token() * self.n_prefixes + self.group[latents.latent.long()]
        n_rows = latents.n_tokens * self.n_prefixes
        offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=row.device)
        torch.cumsum(torch.bincount(row, minlength=n_rows), 0, out=offsets[1:])
        return SparseLatents(offsets, latents.latent, latents.value, latents.n_latents)

    def sae(self) -> Sae:
        return self.selection.sae(self.autoencoder.sae())
