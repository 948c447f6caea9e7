"""AuxK (Gao et al. 2024, arXiv 2406.04093, appendix A.2): dead latents learn to explain what the live ones left.

Of each token's dead latents the k largest make a reconstruction e_hat of the residual e = x - x_hat, which counts as
constant: loss `c * min(1, n_dead / k) * mean_n |e - e_hat|^2 / V`, V as in the reconstruction loss.

Shapes: n tokens, d channels, S latents, D dead latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.saes.autoencoder import Autoencoder
from pipeline.saes.encoding import Encoder, top_codes


class AuxK:
    """The auxiliary loss of dead latents and its gradients."""

    def __init__(self, k: int, coefficient: float) -> None:
        self.k = k
        self.coefficient = coefficient

    def add(
        self, model: Autoencoder, centred: Tensor, residual: Tensor, scale: float, dtype: torch.dtype
    ) -> float:
        """Adds its gradients to the model's and returns this rank's share of the loss; 0 where none is dead.

        `centred` = x - b_dec and `residual` [n, d]; `scale` is what the sum of squares is divided by.
        The gradients reach the dead latents alone, not `b_dec`.
        """
        dead = model.dead().nonzero().squeeze(1)
        if not self.coefficient or not len(dead):
            return 0.0
        k = min(self.k, len(dead))
        weight = self.coefficient * min(1.0, len(dead) / self.k) / scale
        encoder, W_dec = model.encoder[dead], model.W_dec[dead]
        codes = top_codes(Encoder(centred, encoder, model.b_enc[dead], dtype), k)
        f = codes.values
        error = codes.decode(f, W_dec).sub_(residual)
        loss = weight * error.square().sum(dtype=torch.float64).item()
        d_error = error.mul_(2 * weight)
        d_h = codes.products(d_error, W_dec).mul_(f > 0)
        # `dead` has no index twice, so these are plain sums in a fixed order.
        buffer = torch.empty_like(W_dec)
        model.grad["W_dec"][dead] += codes.transposed_product(f, d_error, buffer)
        model.grad["encoder"][dead] += codes.transposed_product(d_h, centred, buffer)
        model.grad["b_enc"][dead] += codes.per_latent(d_h)
        return loss
