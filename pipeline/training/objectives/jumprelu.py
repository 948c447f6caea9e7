"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435): a learnt threshold per latent, a penalty on L0.

`f = h if h > theta else 0`. The loss, besides AuxK, is `mean_n |x - x_hat|^2 / V + c * L0 / d`, with V the
mean squared distance of the first batch's tokens from their mean. f and L0 jump at theta, so their
derivatives by theta are the straight-through estimates of the paper: with u = (h - theta) / w, and K(u) = 1
for |u| < 1/2 and 0 elsewhere, `d f / d theta = -(theta / w) K(u)` and `d L0 / d theta = -(1 / w) K(u)`. Both
are 0 where h <= 0, which cuts off a part of the window of a threshold below w / 2. None starts there by
default.

The paper learns log theta. Here the parameter is theta itself, held at 0 or above: Adam hardly moves a small
threshold through its logarithm, and a small threshold at the start, with many latents on, gave a lower FVU
(benchmarks/LOG.md).

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


class JumpReluConfig(AuxKConfig):
    """Thresholds are learnt, with a penalty on the number of latents above them."""

    kind: Literal["jumprelu"] = "jumprelu"
    fresh_density = 0.3
    encoder_scale: EncoderScale = 0.1
    l0_coefficient: float = Field(0.3, ge=0)
    """The penalty of an L0 equal to the number of channels, in units of the activations' variance."""
    l0_warmup_steps: int = Field(0, ge=0)
    """Number of steps over which `l0_coefficient` rises linearly to its value."""
    threshold_init: float = Field(0.05, gt=0)
    """Initial threshold, in units of the mean norm of a token less `b_dec`, divided by sqrt(d). The default
    equals `bandwidth`, as in the paper (0.001 each for tokens of norm 1 and 3,584 channels: 0.06 in these
    units). With less than half of `bandwidth`, a part of each window starts below 0, where nothing has a
    gradient."""
    bandwidth: float = Field(0.05, gt=0)
    """Width w of the window about a threshold in which it gets a gradient, in the same units."""

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> JumpRelu:
        sae = self.start(sample, tokens_per_image)
        return JumpRelu(self, sae, sample, ranks=ranks)


class JumpRelu:
    """The objective (see `pipeline.training.objective.Objective`)."""

    def __init__(
        self,
        config: JumpReluConfig,
        start: Sae,
        sample: Tensor,
        max_density: float | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self.dtype = getattr(torch, config.precision)
        self.autoencoder = Autoencoder(start, config.dead_feature_window, ranks, self.dtype, max_density)
        self.variance = total_variance(sample)
        self.unit = (sample - start.b_dec).norm(dim=1).mean().item() / sample.shape[1] ** 0.5
        self.bandwidth = config.bandwidth * self.unit
        # The parameter is theta / unit, so that Adam's steps do not depend on the scale of the activations.
        self.threshold = torch.full_like(start.b_enc, config.threshold_init)
        self.auxk = config.auxiliary_loss(sample.shape[1])
        self.autoencoder.parameters["threshold"] = self.threshold
        self.parameters = self.autoencoder.parameters
        self.n_steps = torch.zeros(1, dtype=torch.int64)
        self.state = {**self.autoencoder.state, "n_steps": self.n_steps}

    def n_dead(self) -> int:
        return int(self.autoencoder.dead().sum())

    def _coefficient(self, d: int) -> float:
        """Weight of L0 in the loss at this step: c / d, during the warm-up a share of it."""
        share = min(1.0, (self.n_steps.item() + 1) / max(1, self.config.l0_warmup_steps))
        return self.config.l0_coefficient * share / d

    @torch.no_grad()
    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """The loss and its gradients; that of `W_dec` has no component along its rows."""
        model = self.autoencoder
        model.begin()
        n, d = len(x) * model.ranks.size, x.shape[1]
        coefficient = self._coefficient(d)
        theta = self.threshold.clamp_(min=0) * self.unit
        # Entries with h at or below the floor have neither a value nor a derivative, so they are left out.
        floor = (theta - self.bandwidth / 2).clamp_(min=0)
        centred = x - model.b_dec
        x_hat = torch.empty_like(x)
        fired = torch.zeros(len(theta), dtype=torch.bool, device=x.device)
        squares, n_active, l1_norm = 0.0, 0, 0.0
        encoder = Encoder(centred, EncoderWeights(model.encoder, model.b_enc - floor, self.dtype))
        for rows, latents in positive_latents(encoder, model.max_density.item()):
            at_theta = latents.spread(theta)
            h = latents.value + latents.spread(floor)
            f = h * (h > at_theta)
            x_hat[rows] = latents.decode(f, model.W_dec) + model.b_dec
            error = x_hat[rows] - x[rows]
            squares += total(error.square())
            # L has |x_hat - x|^2 / (n V), so dL/dx_hat = 2 (x_hat - x) / (n V).
            # x_hat = f W_dec + b_dec, so dL/df = dL/dx_hat W_dec^T; where f > 0, f = h and dL/dh = dL/df.
            d_x_hat = error.mul_(2 / (n * self.variance))
            d_f = latents.products(d_x_hat, model.W_dec)
            model.add_decoding(latents, f, d_x_hat)
            model.add("b_dec", d_x_hat.sum(dim=0))
            # Each f > 0 adds C / n to the penalty (C = `coefficient`). By the straight-through estimates,
            # dL/dtheta = -(K / w) (theta dL/df + C / n). The parameter is theta / unit, so: times unit.
            near = ((h - at_theta).abs() < self.bandwidth / 2) & (latents.value > 0)
            d_theta = d_f.mul(at_theta).add_(coefficient / n).mul_(near).mul_(-1 / self.bandwidth)
            model.add("threshold", latents.per_latent(d_theta).mul_(self.unit))
            model.add_encoding(latents, d_f.mul_(f > 0), centred[rows])
            fired |= latents.per_latent(f) > 0
            n_active += n_positive(f)
            l1_norm += total(f) / n
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
