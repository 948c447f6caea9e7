"""The four tensors every objective trains, and what happens to them around each step.

Shapes: n tokens of this rank, d channels, S latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.ranks import Ranks
from pipeline.saes.base import Sae
from pipeline.saes.codes import Codes
from pipeline.saes.initialisation import normalise_rows_


class Autoencoder:
    """Weights under training, their gradients, and which latents are dead.

    The encoder is held as [S, d], a row per latent like the decoder. Decoder rows have length 1 in every step,
    and their gradients no part along them (spec 2.5).
    """

    def __init__(self, start: Sae, dead_feature_window: int, ranks: Ranks) -> None:
        self.encoder = start.W_enc.T.clone(memory_format=torch.contiguous_format)
        self.b_enc = start.b_enc.clone()
        self.W_dec = start.W_dec.clone()
        self.b_dec = start.b_dec.clone()
        self.parameters = {
            "encoder": self.encoder,
            "b_enc": self.b_enc,
            "W_dec": self.W_dec,
            "b_dec": self.b_dec,
        }
        self.steps_since_fired = torch.zeros(start.n_latents, dtype=torch.int64, device=start.b_enc.device)
        self.dead_feature_window = dead_feature_window
        self.ranks = ranks
        # Kept from step to step: memory taken anew costs as much as what is written to it.
        self.grad: dict[str, Tensor] = {}
        self._begun: set[str] = set()

    def dead(self) -> Tensor:
        """The mask of dead latents: [S] bool."""
        return self.steps_since_fired > self.dead_feature_window

    def begin(self) -> None:
        """Starts a step: unit decoder rows, no gradients."""
        normalise_rows_(self.W_dec)
        self._begun.clear()

    def _grad_of(self, name: str) -> tuple[Tensor, bool]:
        """The gradient of a parameter, and whether it holds something of this step."""
        if name not in self.grad:
            self.grad[name] = torch.empty_like(self.parameters[name])
        accumulate = name in self._begun
        self._begun.add(name)
        return self.grad[name], accumulate

    def add(self, name: str, gradient: Tensor) -> None:
        """Adds to the gradient of a parameter."""
        grad, accumulate = self._grad_of(name)
        if accumulate:
            grad.add_(gradient)
        else:
            grad.copy_(gradient)

    def add_decoding(self, codes: Codes, f: Tensor, d_x_hat: Tensor) -> None:
        """Adds `W_dec`'s gradient of `x_hat = f W_dec + b_dec`; `d_x_hat` [n, d] is the loss's by x_hat."""
        codes.transposed_product(f, d_x_hat, *self._grad_of("W_dec"))

    def add_encoding(self, codes: Codes, d_h: Tensor, centred: Tensor) -> None:
        """Adds the gradients of `h = (x - b_dec) W_enc + b_enc`; `d_h` is the loss's by h at the entries."""
        d_h_sum = codes.per_latent(d_h)
        codes.transposed_product(d_h, centred, *self._grad_of("encoder"))
        self.add("b_dec", -(d_h_sum @ self.encoder))
        self.add("b_enc", d_h_sum)

    def finish(self, fired: Tensor) -> None:
        """Ends a step: `fired` [S] bool is set where a latent was above 0 on any token of this rank.

        Raises ValueError if a parameter was given no gradient: what is there is the last step's.
        """
        forgotten = self.parameters.keys() - self._begun
        if forgotten:
            raise ValueError(f"no gradient of {', '.join(sorted(forgotten))}")
        self.steps_since_fired.add_(1).masked_fill_(self.ranks.any_(fired), 0)
        grad = self.grad["W_dec"]
        # Not `vecdot`, which makes an array of the products first.
        along = torch.einsum("sd,sd->s", grad, self.W_dec)
        grad.addcmul_(along.unsqueeze(1), self.W_dec, value=-1)
        for name, parameter in self.parameters.items():
            parameter.grad = self.grad[name]

    def sae(self) -> Sae:
        return Sae(self.encoder.T, self.b_enc, self.W_dec, self.b_dec)
