"""The paper's SAE: ReLU, L1 penalty, ghost gradients (spec 2.1 to 2.5), with its gradients written out.

`h = (x - b_dec) W_enc + b_enc`, `f = relu(h)`, `x_hat = f W_dec + b_dec`. The gradients are written out
because f is sparse soon after the start, and then only one of a step's five dense products is left. The tests
compare them with autograd and with the reference's own numbers.

Shapes: n tokens of this rank (the variable `n` counts all ranks'), d channels, S latents, D dead latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from patchsae.pipeline.core.interrupts import leave_if_asked
from patchsae.pipeline.core.sums import total
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.encoder import Encoder, EncoderWeights, positive_latents
from patchsae.pipeline.saes.sparse.latents import n_positive, tokens_per_block, zero_where_off_
from patchsae.pipeline.training.initialisation import WeightInit
from patchsae.pipeline.training.objective import Gradients, TrainedSaeConfig
from patchsae.pipeline.training.parameters import Autoencoder
from patchsae.pipeline.training.process_group import ALONE, Ranks


class ReluL1Config(TrainedSaeConfig):
    """The paper's objective, by default with its coefficients: ReLU, an L1 penalty and ghost gradients."""

    kind: Literal["relu_l1"] = "relu_l1"
    fresh_density = 0.5
    init: WeightInit = "reference"
    l1_coefficient: float = Field(8e-5, ge=0)
    """Weight of the L1 norm of the latents, which is summed over latents and averaged over tokens."""
    mse_cls_coefficient: float = Field(1.0, ge=0)
    """Weight of each image's first token in the reconstruction loss."""
    ghost_gradients: bool = True
    """Whether dead latents get the gradients of a loss of their own (spec 2.4)."""

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> ReluL1:
        sae = self.start(sample, tokens_per_image)
        return ReluL1(self, sae, ranks=ranks)


class ReluL1:
    """The objective (see `pipeline.training.objective.Objective`)."""

    def __init__(
        self, config: ReluL1Config, start: Sae, max_density: float | None = None, ranks: Ranks = ALONE
    ) -> None:
        self.config = config
        self.dtype = getattr(torch, config.precision)
        self.autoencoder = Autoencoder(start, config.dead_feature_window, ranks, self.dtype, max_density)
        self.parameters = self.autoencoder.parameters
        self.state = {**self.autoencoder.state}

    def n_dead(self) -> int:
        return int(self.autoencoder.dead().sum())

    @torch.no_grad()
    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """The loss of spec 2.3 and 2.4 and its gradients; that of `W_dec` has no component along its rows."""
        model = self.autoencoder
        model.begin()
        n, d = len(x) * model.ranks.size, x.shape[1]
        centred = x - model.b_dec
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        importance = torch.where(token == 0, self.config.mse_cls_coefficient, 1.0).unsqueeze(1)
        x_hat = torch.empty_like(x)
        fired = torch.zeros(len(model.encoder), dtype=torch.bool, device=x.device)
        n_active, l1_norm = 0, 0.0
        encoder = Encoder(centred, EncoderWeights(model.encoder, model.b_enc, self.dtype))
        for rows, latents in positive_latents(encoder, model.max_density.item()):
            f = latents.value.clamp_(min=0)
            x_hat[rows] = latents.decode(f, model.W_dec) + model.b_dec
            # L = sum a (x_hat - x)^2 / (|x| n d) + lambda sum f / n, with a the weight of the token, so
            # dL/dx_hat = 2 a (x_hat - x) / (|x| n d) and dL/dh = dL/dx_hat W_dec^T + lambda / n where f > 0.
            d_x_hat = (x_hat[rows] - x[rows]) * (importance / norm)[rows] * (2 / (n * d))
            d_h = latents.products(d_x_hat, model.W_dec).add_(self.config.l1_coefficient / n)
            zero_where_off_(d_h, f)
            model.add_decoding(latents, f, d_x_hat)
            model.add("b_dec", d_x_hat.sum(dim=0))
            model.add_encoding(latents, d_h, centred[rows])
            fired |= latents.per_latent(f) > 0
            n_active += n_positive(f)
            l1_norm += total(f) / n
        # Squares are divided by |x|, not |x|^2, so the loss grows with |x|, as in the reference (spec 2.3).
        squares = (x_hat - x).square_() / norm
        ghost = self._ghost(x - x_hat, squares, centred)
        model.finish(fired)
        return Gradients(
            x_hat=x_hat,
            reconstruction=total(squares * importance) / (n * d),
            penalty=self.config.l1_coefficient * l1_norm,
            auxiliary=ghost,
            l1_norm=l1_norm,
            l0=n_active / n,
        )

    def _ghost(self, residual: Tensor, squares: Tensor, centred: Tensor) -> float:
        """Adds the gradients of the ghost loss (spec 2.4) and returns this rank's share, or 0.

        `residual` = x - x_hat and `squares`, the reconstruction loss per element before the first token's
        weight, are [n, d] and count as constants. Dead latents enter as exp(h), whose gradient is never 0.
        """
        model = self.autoencoder
        dead = model.dead().nonzero().squeeze(1)
        if not self.config.ghost_gradients or not len(dead):
            return 0.0
        encoder, W_dec, b_enc = model.encoder[dead], model.W_dec[dead], model.b_enc[dead]
        size = residual.numel() * model.ranks.size
        loss = 0.0
        n_rows = tokens_per_block(len(dead))
        for first in range(0, len(residual), n_rows):
            leave_if_asked()
            rows = slice(first, first + n_rows)
            # r = residual, a = exp(h), g = a W_dec, q = (s g - r)^2 / |r| and L = sum q balance / size, where
            # s = |r| / (1e-6 + 2 |g|), r and balance = squares / (q + 1e-6) are constant (spec 2.4).
            activity = torch.addmm(b_enc, centred[rows], encoder.T).exp_()
            raw = activity @ W_dec
            norm = torch.linalg.vector_norm(residual[rows], dim=1, keepdim=True)
            scale = norm / (1e-6 + 2 * torch.linalg.vector_norm(raw, dim=1, keepdim=True))
            difference = raw * scale - residual[rows]
            q = difference.square() / norm
            balance = squares[rows] / (q + 1e-6)
            loss += total(q * balance) / size
            # dL/dg = 2 (s g - r) balance s / (|r| size), and dL/dh = a (dL/dg W_dec^T), since da/dh = a.
            # dL/dW_dec = a^T dL/dg; h = (x - b_dec) encoder^T + b_enc gives the other three.
            d_raw = difference * balance * (scale / norm) * (2 / size)
            d_h = (d_raw @ W_dec.T).mul_(activity)
            # `dead` holds no index twice, so each `+=` reaches every row once and sums run in a fixed order.
            model.grad["W_dec"][dead] += activity.T @ d_raw
            model.grad["encoder"][dead] += d_h.T @ centred[rows]
            model.grad["b_enc"][dead] += d_h.sum(dim=0)
            model.grad["b_dec"] -= d_h.sum(dim=0) @ encoder
        return loss

    def sae(self) -> Sae:
        return self.autoencoder.sae()
