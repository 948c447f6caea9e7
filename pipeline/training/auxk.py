"""AuxK: dead latents learn to reconstruct the residual, and so come back to life.

All objectives but `relu_l1` add it. The k largest dead latents of each token make a reconstruction e_hat of
the residual e = x - x_hat. The loss is `c * min(1, n_dead / k) * mean_n |e - e_hat|^2 / V`, with e constant
and V as in the reconstruction loss.

The idea, an e_hat without b_dec, and a k of about half the channels are those of Gao et al. 2024 (arXiv
2406.04093, appendices A.2 and B.1), for TopK. The weight is not: they have c = 1/32 and no factor
`min(1, n_dead / k)`, and their published code divides by the variance of e where this divides by V. The
variance of e is about FVU * V, so with k or more dead latents this loss is 32 * FVU times theirs: 1.6 times
at FVU 0.05. The factor and the division by V are those of EleutherAI's sparsify (V of each batch there). The
factor and c = 1 beside the reconstruction loss are those of SAELens. The papers of JumpReLU and Gated SAEs do
without AuxK.

Shapes: n tokens, d channels, S latents, D dead latents.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from patchsae.pipeline.core.sums import total
from patchsae.pipeline.saes.sparse.encoder import Encoder, EncoderWeights, top_latents
from patchsae.pipeline.training.objective import TrainedSaeConfig
from patchsae.pipeline.training.parameters import Autoencoder


class AuxKConfig(TrainedSaeConfig):
    """Base of the configs of objectives with AuxK."""

    auxk_coefficient: float = Field(1.0, ge=0)
    """Weight of AuxK, by which dead latents learn to reconstruct the residual; 0 leaves them dead. 1 is
    SAELens' weight. Gao et al.'s 1/32, in units of the residual's variance, is 0.6 here at an FVU of 0.05."""
    auxk: int | None = Field(None, ge=1)
    """Number of dead latents of each token that take part in AuxK; half the channels if not given."""

    def auxiliary_loss(self, width: int) -> AuxK:
        """AuxK for SAEs of `width` channels."""
        return AuxK(self.auxk or max(1, width // 2), self.auxk_coefficient)


class AuxK:
    """The AuxK loss and its gradients, with k dead latents per token and weight c = `coefficient`."""

    def __init__(self, k: int, coefficient: float) -> None:
        self.k = k
        self.coefficient = coefficient

    def add(
        self, model: Autoencoder, centred: Tensor, residual: Tensor, scale: float, dtype: torch.dtype
    ) -> float:
        """Adds the gradients of the loss to the model's and returns this rank's share of the loss.

        `centred` = x - b_dec and `residual` = x - x_hat are [n, d]; `scale` is what the sum of squares is
        divided by. Only the dead latents get gradients; `b_dec` gets none. Returns 0 if no latent is dead.
        """
        dead = model.dead().nonzero().squeeze(1)
        if not self.coefficient or not len(dead):
            return 0.0
        k = min(self.k, len(dead))
        weight = self.coefficient * min(1.0, len(dead) / self.k) / scale
        encoder, W_dec = model.encoder[dead], model.W_dec[dead]
        # With h = centred encoder^T + b_enc, f is the k largest relu(h) of each token, and e_hat = f W_dec.
        # L = a sum |e_hat - e|^2 with a = `weight`: dL/de_hat = 2 a (e_hat - e), and
        # dL/dh = dL/de_hat W_dec^T where f > 0.
        latents = top_latents(Encoder(centred, EncoderWeights(encoder, model.b_enc[dead], dtype)), k)
        f = latents.value
        error = latents.decode(f, W_dec).sub_(residual)
        loss = weight * total(error.square())
        d_error = error.mul_(2 * weight)
        d_h = latents.products(d_error, W_dec).mul_(f > 0)
        # dL/dW_dec = f^T dL/de_hat, dL/dencoder = dL/dh^T centred and dL/db_enc = sum_t dL/dh[t].
        # `dead` holds no index twice, so each `+=` reaches every row once and sums run in a fixed order.
        buffer = torch.empty_like(W_dec)
        model.grad["W_dec"][dead] += latents.transposed_product(f, d_error, buffer)
        model.grad["encoder"][dead] += latents.transposed_product(d_h, centred, buffer)
        model.grad["b_enc"][dead] += latents.per_latent(d_h)
        return loss
