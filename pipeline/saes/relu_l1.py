"""The paper's SAE: ReLU, L1 penalty, ghost gradients (spec 2.1 to 2.5), with its gradients written out.

`h = (x - b_dec) W_enc + b_enc`, `f = relu(h)`, `x_hat = f W_dec + b_dec`. Written out, because f is sparse soon
after the start: of the five dense products of a step one is left. The tests hold it against autograd and against
the reference's own numbers.

Shapes: n tokens, d channels, S latents, D dead latents.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from pipeline.latents import tokens_per_block
from pipeline.saes.base import Sae
from pipeline.saes.codes import MAX_DENSITY, encode_blocks
from pipeline.saes.initialisation import DecoderBias, decoder_bias, normalise_rows_, reference_weights
from pipeline.saes.objective import Gradients, TrainedSaeConfig


class ReluL1Config(TrainedSaeConfig):
    """The paper's objective; the defaults are the paper's, but for the shuffled stream."""

    kind: Literal["relu_l1"] = "relu_l1"
    l1_coefficient: float = Field(8e-5, ge=0)
    mse_cls_coefficient: float = Field(1.0, ge=0)
    """Weight of each image's first token in the reconstruction loss."""
    ghost_gradients: bool = True
    dead_feature_window: int = Field(64, ge=0)
    """A latent is dead once it has not fired for more than this many steps."""
    b_dec_init: DecoderBias = "geometric_median"
    """`geometric_median_reference` takes whole images as points, as the reference does."""
    unit_decoder: bool = True
    """Save decoder rows at length 1 and scale each latent by what its row had instead: the same function.
    The reference saves the rows as the last Adam step left them."""

    @model_validator(mode="after")
    def _reference_median_needs_images(self) -> Self:
        if self.b_dec_init == "geometric_median_reference" and self.mix != "images":
            raise ValueError(
                "b_dec_init `geometric_median_reference` has whole images as points; set mix: images"
            )
        return self

    def objective(self, sample: Tensor, tokens_per_image: int) -> ReluL1:
        d = sample.shape[1]
        # On the CPU for every device, so that a seed means the same weights everywhere.
        generator = torch.Generator().manual_seed(self.seed)
        W_enc, W_dec = reference_weights(d, self.count_latents(d), generator)
        b_dec = decoder_bias(self.b_dec_init, sample, tokens_per_image)
        b_enc = torch.zeros(W_enc.shape[1])
        return ReluL1(self, Sae(W_enc, b_enc, W_dec, b_dec).to(str(sample.device)))


class ReluL1:
    """The objective under training, see `pipeline.saes.objective.Objective`.

    The encoder is held as [S, d], a row per latent like the decoder.
    """

    def __init__(self, config: ReluL1Config, start: Sae, max_density: float = MAX_DENSITY) -> None:
        self.config = config
        self.max_density = max_density
        self.encoder = start.W_enc.T.contiguous()
        self.b_enc = start.b_enc.clone()
        self.W_dec = start.W_dec.clone()
        self.b_dec = start.b_dec.clone()
        self.steps_since_fired = torch.zeros(start.n_latents, dtype=torch.int64, device=start.b_enc.device)
        self.parameters = {
            "encoder": self.encoder,
            "b_enc": self.b_enc,
            "W_dec": self.W_dec,
            "b_dec": self.b_dec,
        }
        self.state = {"steps_since_fired": self.steps_since_fired}

    def dead(self) -> Tensor:
        """The mask of dead latents: [S] bool."""
        return self.steps_since_fired > self.config.dead_feature_window

    def n_dead(self) -> int:
        return int(self.dead().sum())

    @torch.no_grad()
    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """The loss of spec 2.3 and 2.4 and its gradients, `W_dec`'s without its part along `W_dec`."""
        n, d = x.shape
        normalise_rows_(self.W_dec)
        grad = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        centred = x - self.b_dec
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        importance = torch.where(token == 0, self.config.mse_cls_coefficient, 1.0).unsqueeze(1)
        x_hat = torch.empty_like(x)
        fired = torch.zeros_like(self.steps_since_fired, dtype=torch.bool)
        n_active, l1_norm = 0, 0.0
        for rows, codes in encode_blocks(centred, self.encoder, self.b_enc, self.max_density):
            x_hat[rows] = codes.decode(self.W_dec) + self.b_dec
            d_x_hat = (x_hat[rows] - x[rows]) * (importance / norm)[rows] * (2 / (n * d))
            d_h = codes.backward(d_x_hat, self.W_dec, self.config.l1_coefficient / n)
            d_h_sum = codes.per_latent(d_h)
            grad["encoder"] += codes.transposed_product(d_h, centred[rows])
            grad["W_dec"] += codes.transposed_product(codes.values, d_x_hat)
            grad["b_enc"] += d_h_sum
            grad["b_dec"] += d_x_hat.sum(dim=0) - d_h_sum @ self.encoder
            fired |= codes.per_latent(codes.values) > 0
            n_active += int(torch.count_nonzero(codes.values))
            l1_norm += codes.values.sum(dtype=torch.float64).item() / n
        # Divided by the norm, not its square: the loss grows with |x| (spec 2.3).
        squares = (x_hat - x).square_() / norm
        ghost = self._ghost(x - x_hat, squares, centred, grad)
        self.steps_since_fired.add_(1).masked_fill_(fired, 0)
        _remove_parallel_(grad["W_dec"], self.W_dec)
        for name, parameter in self.parameters.items():
            parameter.grad = grad[name]
        mse = (squares * importance).mean(dtype=torch.float64).item()
        l1 = self.config.l1_coefficient * l1_norm
        return Gradients(x_hat, mse + l1 + ghost, mse, l1, l1_norm, ghost, n_active / n)

    def _ghost(self, residual: Tensor, squares: Tensor, centred: Tensor, grad: dict[str, Tensor]) -> float:
        """The loss of spec 2.4, adding its gradients to `grad`; 0 where no latent is dead.

        `residual` is x - x_hat, `squares` the reconstruction loss per element before the first token's weight;
        both count as constants: [n, d].
        Dead latents speak through exp of their pre-activations, so that silent ones have a gradient.
        """
        dead = self.dead().nonzero().squeeze(1)
        if not self.config.ghost_gradients or not len(dead):
            return 0.0
        encoder, W_dec, b_enc = self.encoder[dead], self.W_dec[dead], self.b_enc[dead]
        loss = 0.0
        n_rows = tokens_per_block(len(dead))
        for start in range(0, len(residual), n_rows):
            rows = slice(start, start + n_rows)
            activity = torch.addmm(b_enc, centred[rows], encoder.T).exp_()
            raw = activity @ W_dec
            norm = torch.linalg.vector_norm(residual[rows], dim=1, keepdim=True)
            scale = norm / (1e-6 + 2 * torch.linalg.vector_norm(raw, dim=1, keepdim=True))
            difference = raw * scale - residual[rows]
            q = difference.square() / norm
            balance = squares[rows] / (q + 1e-6)
            loss += (q * balance).sum(dtype=torch.float64).item() / residual.numel()
            d_raw = difference * balance * (scale / norm) * (2 / residual.numel())
            d_h = (d_raw @ W_dec.T).mul_(activity)
            # `dead` has no index twice, so these are plain sums in a fixed order.
            grad["W_dec"][dead] += activity.T @ d_raw
            grad["encoder"][dead] += d_h.T @ centred[rows]
            grad["b_enc"][dead] += d_h.sum(dim=0)
            grad["b_dec"] -= d_h.sum(dim=0) @ encoder
        return loss

    def sae(self) -> Sae:
        if not self.config.unit_decoder:
            return Sae(self.encoder.T, self.b_enc, self.W_dec, self.b_dec)
        length = torch.linalg.vector_norm(self.W_dec, dim=1, keepdim=True)
        return Sae((self.encoder * length).T, self.b_enc * length[:, 0], self.W_dec / length, self.b_dec)


def _remove_parallel_(grad: Tensor, W: Tensor) -> None:
    """Takes from every row of `grad` its part along the same row of `W`, whose rows have length 1."""
    grad -= (grad * W).sum(dim=1, keepdim=True) * W
