"""Gated (Rajamanoharan et al. 2024, arXiv 2404.16014): one path says which latents are on, another how much.

With p = (x - b_dec) W_enc: gate `g = p + b_gate`, magnitude `m = exp(r) p + b_mag`, `f = relu(m) where g > 0`. Loss
`mean_n (|x - x_hat|^2 + |x - x_gate|^2) / V + c * mean_n sum_s relu(g) / (sqrt(d) u)`, where x_gate decodes relu(g)
with a decoder that counts as constant, V is the mean squared distance of the first batch's tokens from their mean
and u the mean length of a centred one over sqrt(d).

It is a JumpReLU in the end: g > 0 means m > b_mag - exp(r) b_gate, and so it is saved.

Shapes: n tokens of this rank, d channels, S latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.ranks import ALONE, Ranks
from pipeline.saes.autoencoder import Autoencoder
from pipeline.saes.auxk import AuxK
from pipeline.saes.base import Sae
from pipeline.saes.encoding import MAX_DENSITY, Encoder, positive_codes
from pipeline.saes.objective import Gradients, TrainedSaeConfig
from pipeline.saes.topk import total_variance


class GatedConfig(TrainedSaeConfig):
    """Gates with an L1 penalty, magnitudes without."""

    kind: Literal["gated"] = "gated"
    encoder_scale: float = Field(0.1, gt=0)
    l1_coefficient: float = Field(0.3, ge=0)
    """c, see the module: free of the activations' scale."""
    auxk_coefficient: float = Field(1.0, ge=0)
    """Weight of the loss in which dead latents explain what is left; 0 leaves them dead."""
    auxk: int | None = Field(None, ge=1)
    """How many dead latents of each token take part; half the channels if not given."""

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> Gated:
        sae = self.start(sample, tokens_per_image)
        return Gated(self, sae, sample, ranks=ranks)


class Gated:
    """The objective under training, see `pipeline.saes.objective.Objective`. `b_enc` is the gate's bias."""

    def __init__(
        self,
        config: GatedConfig,
        start: Sae,
        sample: Tensor,
        max_density: float = MAX_DENSITY,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self.max_density = max_density
        self.dtype = getattr(torch, config.precision)
        self.autoencoder = Autoencoder(start, config.dead_feature_window, ranks)
        self.variance = total_variance(sample)
        length = (sample - start.b_dec).norm(dim=1).mean().item()
        self.l1_coefficient = config.l1_coefficient / length
        self.log_scale = torch.zeros_like(start.b_enc)
        self.b_mag = torch.zeros_like(start.b_enc)
        self.auxk = AuxK(config.auxk or max(1, sample.shape[1] // 2), config.auxk_coefficient)
        self.autoencoder.parameters |= {"log_scale": self.log_scale, "b_mag": self.b_mag}
        self.parameters = self.autoencoder.parameters
        self.state = {"steps_since_fired": self.autoencoder.steps_since_fired}

    def n_dead(self) -> int:
        return int(self.autoencoder.dead().sum())

    @torch.no_grad()
    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """The loss and its gradients, `W_dec`'s without its part along `W_dec`."""
        model = self.autoencoder
        model.begin()
        n = len(x) * model.ranks.size
        centred = x - model.b_dec
        x_hat = torch.empty_like(x)
        scale = self.log_scale.exp()
        fired = torch.zeros(len(scale), dtype=torch.bool, device=x.device)
        squares, n_active, l1_norm, gate_norm = 0.0, 0, 0.0, 0.0
        encoder = Encoder(centred, model.encoder, model.b_enc, self.dtype)
        for rows, codes in positive_codes(encoder, self.max_density):
            gate = codes.values.clamp(min=0)
            product = (codes.values - codes.spread(model.b_enc)).mul_(gate > 0)
            scaled = codes.spread(scale).mul_(product)
            f = (scaled + codes.spread(self.b_mag)).clamp_(min=0).mul_(gate > 0)
            x_hat[rows] = codes.decode(f, model.W_dec) + model.b_dec
            error = x_hat[rows] - x[rows]
            gate_error = codes.decode(gate, model.W_dec) - centred[rows]
            for e in (error, gate_error):
                squares += e.square().sum(dtype=torch.float64).item()
            d_x_hat = error.mul_(2 / (n * self.variance))
            model.add_decoding(codes, f, d_x_hat)
            model.add("b_dec", d_x_hat.sum(dim=0))
            d_m = codes.products(d_x_hat, model.W_dec).mul_(f > 0)
            d_gate = codes.products(gate_error.mul_(2 / (n * self.variance)), model.W_dec)
            d_gate.add_(self.l1_coefficient / n).mul_(gate > 0)
            model.add("b_mag", codes.per_latent(d_m))
            model.add("log_scale", codes.per_latent(d_m * scaled))
            # By p and by g, which is p and a bias: both reach the encoder, one the gate's bias.
            model.add_encoding(codes, d_gate + d_m * codes.spread(scale), centred[rows])
            model.add("b_enc", -codes.per_latent(d_m * codes.spread(scale)))
            fired |= codes.per_latent(gate) > 0
            n_active += int(torch.count_nonzero(f))
            l1_norm += f.sum(dtype=torch.float64).item() / n
            gate_norm += gate.sum(dtype=torch.float64).item() / n
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
