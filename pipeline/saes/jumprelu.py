"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): a threshold per latent, and a penalty on L0 itself.

`f = h if h > theta else 0`, loss `mean_n |x - x_hat|^2 / V + c * L0 / d` with V the mean
squared distance of the first batch's tokens from their mean. The steps in theta have the straight-through
derivatives of the paper: with u = (h - theta) / w and K(u) = 1 for |u| < 1/2,
`d f / d theta = -(theta / w) K(u)` and `d L0 / d theta = -(1 / w) K(u)`; a latent at or below 0 has none.

Not the paper's: the parameter is theta, held at or above 0, where the paper learns log theta. Adam's steps in
a logarithm hardly move a small threshold, and SAEs that start with many latents on end better (benchmarks/LOG.md).

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


class JumpReluConfig(TrainedSaeConfig):
    """Thresholds that are learnt, with a penalty on how many latents pass them."""

    kind: Literal["jumprelu"] = "jumprelu"
    encoder_scale: float = Field(0.1, gt=0)
    l0_coefficient: float = Field(0.3, ge=0)
    """c: what a token's L0 of d would cost, in shares of the activations' variance."""
    l0_warmup_steps: int = Field(0, ge=0)
    """The coefficient rises linearly over so many steps."""
    threshold_init: float = Field(0.01, gt=0)
    """theta at the start, in units of the mean length of a centred token divided by sqrt(d)."""
    bandwidth: float = Field(0.05, gt=0)
    """w, in the same units."""
    auxk_coefficient: float = Field(1.0, ge=0)
    """Weight of the loss in which dead latents explain what is left; 0 leaves them dead."""
    auxk: int | None = Field(None, ge=1)
    """How many dead latents of each token take part; half the channels if not given."""

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> JumpRelu:
        sae = self.start(sample, tokens_per_image)
        return JumpRelu(self, sae, sample, ranks=ranks)


class JumpRelu:
    """The objective under training, see `pipeline.saes.objective.Objective`."""

    def __init__(
        self,
        config: JumpReluConfig,
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
        self.unit = (sample - start.b_dec).norm(dim=1).mean().item() / sample.shape[1] ** 0.5
        self.bandwidth = config.bandwidth * self.unit
        # In units of that length, so that Adam's steps do not depend on the activations' scale.
        self.threshold = torch.full_like(start.b_enc, config.threshold_init)
        self.auxk = AuxK(config.auxk or max(1, sample.shape[1] // 2), config.auxk_coefficient)
        self.autoencoder.parameters["threshold"] = self.threshold
        self.parameters = self.autoencoder.parameters
        self.n_steps = torch.zeros(1, dtype=torch.int64)
        self.state = {"steps_since_fired": self.autoencoder.steps_since_fired, "n_steps": self.n_steps}

    def n_dead(self) -> int:
        return int(self.autoencoder.dead().sum())

    def _coefficient(self, d: int) -> float:
        """Weight of L0 at this step."""
        share = min(1.0, (self.n_steps.item() + 1) / max(1, self.config.l0_warmup_steps))
        return self.config.l0_coefficient * share / d

    @torch.no_grad()
    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """The loss and its gradients, `W_dec`'s without its part along `W_dec`."""
        model = self.autoencoder
        model.begin()
        n, d = len(x) * model.ranks.size, x.shape[1]
        coefficient = self._coefficient(d)
        theta = self.threshold.clamp_(min=0) * self.unit
        # Entries below have neither a value nor a derivative.
        floor = (theta - self.bandwidth / 2).clamp_(min=0)
        centred = x - model.b_dec
        x_hat = torch.empty_like(x)
        fired = torch.zeros(len(theta), dtype=torch.bool, device=x.device)
        squares, n_active, l1_norm = 0.0, 0, 0.0
        encoder = Encoder(centred, model.encoder, model.b_enc - floor, self.dtype)
        for rows, codes in positive_codes(encoder, self.max_density):
            at_theta = codes.spread(theta)
            h = codes.values + codes.spread(floor)
            f = h * (h > at_theta)
            x_hat[rows] = codes.decode(f, model.W_dec) + model.b_dec
            error = x_hat[rows] - x[rows]
            squares += error.square().sum(dtype=torch.float64).item()
            d_x_hat = error.mul_(2 / (n * self.variance))
            d_f = codes.products(d_x_hat, model.W_dec)
            model.add_decoding(codes, f, d_x_hat)
            model.add("b_dec", d_x_hat.sum(dim=0))
            near = ((h - at_theta).abs() < self.bandwidth / 2) & (codes.values > 0)
            d_theta = d_f.mul(at_theta).add_(coefficient / n).mul_(near).mul_(-1 / self.bandwidth)
            model.add("threshold", codes.per_latent(d_theta).mul_(self.unit))
            model.add_encoding(codes, d_f.mul_(f > 0), centred[rows])
            fired |= codes.per_latent(f) > 0
            n_active += int(torch.count_nonzero(f))
            l1_norm += f.sum(dtype=torch.float64).item() / n
        auxiliary = self.auxk.add(model, centred, x - x_hat, n * self.variance, self.dtype)
        model.finish(fired)
        self.n_steps += 1
        return Gradients(
            x_hat=x_hat,
            reconstruction=squares / (n * self.variance),
            penalty=coefficient * n_active / n,
            auxiliary=auxiliary,
            l1_norm=l1_norm,
            l0=n_active / n,
        )

    def sae(self) -> Sae:
        sae = self.autoencoder.sae()
        return Sae(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, self.threshold.clamp(min=0) * self.unit)
