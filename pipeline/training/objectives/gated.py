"""Gated (Rajamanoharan et al. 2024, arXiv 2404.16014): a gate per latent, and a magnitude where it is open.

With p = (x - b_dec) W_enc, the gate is `g = p + b_gate`, the magnitude is `m = exp(r) p + b_mag`, and
`f = relu(m) where g > 0`. Besides AuxK, the loss is
`mean_n (|x - x_hat|^2 + |x - x_gate|^2) / V + (c / l) mean_n sum_s relu(g)`, with
x_gate = relu(g) W_dec + b_dec in which W_dec and b_dec are constant. V is the mean squared distance of the
first batch's tokens from their mean, and l is the mean norm of those tokens after b_dec is subtracted.

Since exp(r) > 0, g > 0 means the same as m > b_mag - exp(r) b_gate. So the SAE is saved as a JumpReLU.

Shapes: n tokens of this rank (the variable `n` counts those of all ranks), d channels, S latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from patchsae.pipeline.core.sums import total
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.encoder import Encoder, EncoderWeights, positive_latents
from patchsae.pipeline.saes.sparse.latents import n_positive
from patchsae.pipeline.training.auxk import AuxKConfig
from patchsae.pipeline.training.initialisation import EncoderScale
from patchsae.pipeline.training.objective import Gradients
from patchsae.pipeline.training.parameters import Autoencoder
from patchsae.pipeline.training.process_group import ALONE, Ranks
from patchsae.pipeline.training.selected import total_variance


class GatedConfig(AuxKConfig):
    """Gates with an L1 penalty decide which latents are on; magnitudes, without a penalty, how much."""

    kind: Literal["gated"] = "gated"
    fresh_density = 0.5
    encoder_scale: EncoderScale = 0.1
    l1_coefficient: float = Field(0.3, ge=0)
    """Weight of the L1 norm of the gates in units of the mean norm of a token, so that it does not depend on
    the scale of the activations."""

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> Gated:
        sae = self.start(sample, tokens_per_image)
        return Gated(self, sae, sample, ranks=ranks)


class Gated:
    """The objective (see `pipeline.training.objective.Objective`). `b_enc` is b_gate and `log_scale` is r."""

    def __init__(
        self,
        config: GatedConfig,
        start: Sae,
        sample: Tensor,
        max_density: float | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self.dtype = getattr(torch, config.precision)
        self.autoencoder = Autoencoder(start, config.dead_feature_window, ranks, self.dtype, max_density)
        self.variance = total_variance(sample)
        length = (sample - start.b_dec).norm(dim=1).mean().item()
        self.l1_coefficient = config.l1_coefficient / length
        self.log_scale = torch.zeros_like(start.b_enc)
        self.b_mag = torch.zeros_like(start.b_enc)
        self.auxk = config.auxiliary_loss(sample.shape[1])
        self.autoencoder.parameters |= {"log_scale": self.log_scale, "b_mag": self.b_mag}
        self.parameters = self.autoencoder.parameters
        self.state = {**self.autoencoder.state}

    def n_dead(self) -> int:
        return int(self.autoencoder.dead().sum())

    @torch.no_grad()
    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """The loss and its gradients; that of `W_dec` has no component along its rows."""
        model = self.autoencoder
        model.begin()
        n = len(x) * model.ranks.size
        centred = x - model.b_dec
        x_hat = torch.empty_like(x)
        scale = self.log_scale.exp()
        fired = torch.zeros(len(scale), dtype=torch.bool, device=x.device)
        squares, n_active, l1_norm, gate_norm = 0.0, 0, 0.0, 0.0
        encoder = Encoder(centred, EncoderWeights(model.encoder, model.b_enc, self.dtype))
        for rows, latents in positive_latents(encoder, model.max_density.item()):
            gate = latents.value.clamp(min=0)
            product = (latents.value - latents.spread(model.b_enc)).mul_(gate > 0)
            scaled = latents.spread(scale).mul_(product)
            f = (scaled + latents.spread(self.b_mag)).clamp_(min=0).mul_(gate > 0)
            x_hat[rows] = latents.decode(f, model.W_dec) + model.b_dec
            error = x_hat[rows] - x[rows]
            gate_error = latents.decode(gate, model.W_dec) - centred[rows]
            for e in (error, gate_error):
                squares += total(e.square())
            # L has |x_hat - x|^2 / (n V), so dL/dx_hat = 2 (x_hat - x) / (n V); dL/dx_gate is alike.
            # x_hat = f W_dec + b_dec and f = relu(m) where g > 0, so dL/dm = dL/dx_hat W_dec^T where f > 0.
            d_x_hat = error.mul_(2 / (n * self.variance))
            model.add_decoding(latents, f, d_x_hat)
            model.add("b_dec", d_x_hat.sum(dim=0))
            d_m = latents.products(d_x_hat, model.W_dec).mul_(f > 0)
            # x_gate = relu(g) W_dec + b_dec with a constant decoder, and the penalty has (c / (l n)) relu(g),
            # so dL/dg = dL/dx_gate W_dec^T + c / (l n) where g > 0.
            d_gate = latents.products(gate_error.mul_(2 / (n * self.variance)), model.W_dec)
            d_gate.add_(self.l1_coefficient / n).mul_(gate > 0)
            # m = exp(r) p + b_mag, so dL/db_mag = sum_t dL/dm and dL/dr = sum_t dL/dm exp(r) p.
            model.add("b_mag", latents.per_latent(d_m))
            model.add("log_scale", latents.per_latent(d_m * scaled))
            # p is part of g and of m, so dL/dp = dL/dg + exp(r) dL/dm. b_gate is part of g only, so the sum
            # of exp(r) dL/dm is taken off again from what `add_encoding` adds to its gradient.
            model.add_encoding(latents, d_gate + d_m * latents.spread(scale), centred[rows])
            model.add("b_enc", -latents.per_latent(d_m * latents.spread(scale)))
            fired |= latents.per_latent(gate) > 0
            n_active += n_positive(f)
            l1_norm += total(f) / n
            gate_norm += total(gate) / n
        auxiliary = self.auxk.add(model, centred, x - x_hat, n * self.variance, self.dtype)
        model.finish(fired)
        return Gradients(
            x_hat=x_hat,
            reconstruction=squares / (n * self.variance),
            penalty=self.l1_coefficient * gate_norm,
            auxiliary=auxiliary,
            l1_norm=l1_norm,
            l0=n_active / n,
        )

    def sae(self) -> Sae:
        sae, scale = self.autoencoder.sae(), self.log_scale.exp()
        threshold = (self.b_mag - scale * sae.b_enc).clamp(min=0)
        return Sae(sae.W_enc * scale, self.b_mag.clone(), sae.W_dec, sae.b_dec, threshold)
