"""The paper's SAE: ReLU, L1 penalty, ghost gradients (spec 2.1 to 2.5), with its gradients written out.

`h = (x - b_dec) W_enc + b_enc`, `f = relu(h)`, `x_hat = f W_dec + b_dec`. Written out, because f is sparse soon
after the start: of the five dense products of a step one is left. The tests hold it against autograd and against
the reference's own numbers.

Shapes: n tokens of this rank, d channels, S latents, D dead latents.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.latents import tokens_per_block
from pipeline.ranks import ALONE, Ranks
from pipeline.saes.autoencoder import Autoencoder
from pipeline.saes.base import Sae
from pipeline.saes.encoding import MAX_DENSITY, Encoder, positive_codes
from pipeline.saes.initialisation import WeightInit
from pipeline.saes.objective import Gradients, TrainedSaeConfig


class ReluL1Config(TrainedSaeConfig):
    """The paper's objective; the defaults are the paper's, but for the shuffled stream."""

    kind: Literal["relu_l1"] = "relu_l1"
    init: WeightInit = "reference"
    l1_coefficient: float = Field(8e-5, ge=0)
    mse_cls_coefficient: float = Field(1.0, ge=0)
    """Weight of each image's first token in the reconstruction loss."""
    ghost_gradients: bool = True

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> ReluL1:
        sae = self.start(sample, tokens_per_image)
        return ReluL1(self, sae, ranks=ranks)


class ReluL1:
    """The objective under training, see `pipeline.saes.objective.Objective`."""

    def __init__(
        self, config: ReluL1Config, start: Sae, max_density: float = MAX_DENSITY, ranks: Ranks = ALONE
    ) -> None:
        self.config = config
        self.max_density = max_density
        self.dtype = getattr(torch, config.precision)
        self.autoencoder = Autoencoder(start, config.dead_feature_window, ranks)
        self.parameters = self.autoencoder.parameters
        self.state = {"steps_since_fired": self.autoencoder.steps_since_fired}

    def n_dead(self) -> int:
        return int(self.autoencoder.dead().sum())

    @torch.no_grad()
    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """The loss of spec 2.3 and 2.4 and its gradients, `W_dec`'s without its part along `W_dec`."""
        model = self.autoencoder
        model.begin()
        n, d = len(x) * model.ranks.size, x.shape[1]
        centred = x - model.b_dec
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        importance = torch.where(token == 0, self.config.mse_cls_coefficient, 1.0).unsqueeze(1)
        x_hat = torch.empty_like(x)
        fired = torch.zeros(len(model.encoder), dtype=torch.bool, device=x.device)
        n_active, l1_norm = 0, 0.0
        encoder = Encoder(centred, model.encoder, model.b_enc, self.dtype)
        for rows, codes in positive_codes(encoder, self.max_density):
            f = codes.values.clamp(min=0)
            x_hat[rows] = codes.decode(f, model.W_dec) + model.b_dec
            d_x_hat = (x_hat[rows] - x[rows]) * (importance / norm)[rows] * (2 / (n * d))
            d_h = codes.products(d_x_hat, model.W_dec).add_(self.config.l1_coefficient / n).mul_(f > 0)
            model.add_decoding(codes, f, d_x_hat)
            model.add("b_dec", d_x_hat.sum(dim=0))
            model.add_encoding(codes, d_h, centred[rows])
            fired |= codes.per_latent(f) > 0
            n_active += int(torch.count_nonzero(f))
            l1_norm += f.sum(dtype=torch.float64).item() / n
        # Divided by the norm, not its square: the loss grows with |x| (spec 2.3).
        squares = (x_hat - x).square_() / norm
        ghost = self._ghost(x - x_hat, squares, centred)
        model.finish(fired)
        return Gradients(
            x_hat=x_hat,
            reconstruction=(squares * importance).sum(dtype=torch.float64).item() / (n * d),
            penalty=self.config.l1_coefficient * l1_norm,
            auxiliary=ghost,
            l1_norm=l1_norm,
            l0=n_active / n,
        )

    def _ghost(self, residual: Tensor, squares: Tensor, centred: Tensor) -> float:
        """The loss of spec 2.4, adding its gradients; 0 where no latent is dead.

        `residual` is x - x_hat, `squares` the reconstruction loss per element before the first token's weight;
        both count as constants: [n, d].
        Dead latents speak through exp of their pre-activations, so that silent ones have a gradient.
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
            rows = slice(first, first + n_rows)
            activity = torch.addmm(b_enc, centred[rows], encoder.T).exp_()
            raw = activity @ W_dec
            norm = torch.linalg.vector_norm(residual[rows], dim=1, keepdim=True)
            scale = norm / (1e-6 + 2 * torch.linalg.vector_norm(raw, dim=1, keepdim=True))
            difference = raw * scale - residual[rows]
            q = difference.square() / norm
            balance = squares[rows] / (q + 1e-6)
            loss += (q * balance).sum(dtype=torch.float64).item() / size
            d_raw = difference * balance * (scale / norm) * (2 / size)
            d_h = (d_raw @ W_dec.T).mul_(activity)
            # `dead` has no index twice, so these are plain sums in a fixed order.
            model.grad["W_dec"][dead] += activity.T @ d_raw
            model.grad["encoder"][dead] += d_h.T @ centred[rows]
            model.grad["b_enc"][dead] += d_h.sum(dim=0)
            model.grad["b_dec"] -= d_h.sum(dim=0) @ encoder
        return loss

    def sae(self) -> Sae:
        return self.autoencoder.sae()
