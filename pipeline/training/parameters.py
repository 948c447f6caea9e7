"""The four weight tensors that every objective trains, their gradients, and the work around each step.

Shapes: n tokens of this rank, d channels, S latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.encoder import max_density as measure_max_density
from patchsae.pipeline.saes.sparse.latents import Latents
from patchsae.pipeline.training.initialisation import normalise_rows_
from patchsae.pipeline.training.process_group import Ranks

BEGUN = "begun"


class Autoencoder:
    """The weights under training, their gradients, and which latents are dead.

    The encoder is held as [S, d], one row per latent like the decoder. Each step starts by scaling decoder
    rows to norm 1, and their gradients have no component along them (spec 2.5). `dtype` is the precision of
    the product that finds the latents that are on.
    """

    def __init__(
        self,
        start: Sae,
        dead_feature_window: int,
        ranks: Ranks,
        dtype: torch.dtype,
        max_density: float | None = None,
    ) -> None:
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
        device = start.b_enc.device
        self.steps_since_fired = torch.zeros(start.n_latents, dtype=torch.int64, device=device)
        if max_density is None:
            max_density = measure_max_density(device, start.width, start.n_latents, dtype)
        # On CUDA this number was measured, and it decides in which order sums run. So all ranks use the
        # smallest one, and checkpoints keep it.
        everyone = ranks.gather(torch.tensor([max_density], dtype=torch.float64, device=device))
        self.max_density = everyone.min().cpu().reshape(1)
        # [1]: 1 between `begin` and `finish`, when decoder rows have norm 1 already. Scaling them twice would change
        # their last bits, so a step that was abandoned begins without it when it is taken again.
        self.begun = torch.zeros(1, dtype=torch.uint8)
        self.state = {
            "steps_since_fired": self.steps_since_fired,
            "max_density": self.max_density,
            BEGUN: self.begun,
        }
        self.dead_feature_window = dead_feature_window
        self.ranks = ranks
        # The buffers are kept from step to step, because allocating them costs as much time as filling them.
        self.grad: dict[str, Tensor] = {}
        self._begun: set[str] = set()

    def dead(self) -> Tensor:
        """Mask of the latents that have not fired for more than `dead_feature_window` steps: [S] bool."""
        return self.steps_since_fired > self.dead_feature_window

    def begin(self) -> None:
        """Starts a step: scales decoder rows to norm 1 and forgets the gradients of the step before."""
        if not self.begun.item():
            normalise_rows_(self.W_dec)
        self.begun.fill_(1)
        self._begun.clear()

    def _grad_of(self, name: str) -> tuple[Tensor, bool]:
        """The buffer of a parameter's gradient, and whether it already holds a part of this step's."""
        if name not in self.grad:
            self.grad[name] = torch.empty_like(self.parameters[name])
        accumulate = name in self._begun
        self._begun.add(name)
        return self.grad[name], accumulate

    def add(self, name: str, gradient: Tensor) -> None:
        """Adds `gradient` to the gradient of the parameter `name`."""
        grad, accumulate = self._grad_of(name)
        if accumulate:
            grad.add_(gradient)
        else:
            grad.copy_(gradient)

    def add_decoding(self, latents: Latents, f: Tensor, d_x_hat: Tensor) -> None:
        """Adds the gradient of `W_dec` in `x_hat = f W_dec + b_dec`; `d_x_hat` [n, d] is dL/dx_hat.

        The caller adds that of `b_dec`.
        """
        # x_hat[t] = sum_s f[t, s] W_dec[s] + b_dec, so dL/dW_dec[s] = sum_t f[t, s] dL/dx_hat[t]:
        # as matrices, dL/dW_dec = f^T dL/dx_hat.
        latents.transposed_product(f, d_x_hat, *self._grad_of("W_dec"))

    def add_encoding(self, latents: Latents, d_h: Tensor, centred: Tensor) -> None:
        """Adds the gradients of `h = (x - b_dec) W_enc + b_enc`.

        `d_h` is dL/dh at the entries and `centred` is x - b_dec [n, d].
        """
        # h = centred encoder^T + b_enc, so dL/dencoder = dL/dh^T centred and dL/db_enc = sum_t dL/dh[t].
        # dL/dcentred = dL/dh encoder and centred = x - b_dec, so dL/db_dec = -(sum_t dL/dh[t]) encoder.
        d_h_sum = latents.per_latent(d_h)
        latents.transposed_product(d_h, centred, *self._grad_of("encoder"))
        self.add("b_dec", -(d_h_sum @ self.encoder))
        self.add("b_enc", d_h_sum)

    def finish(self, fired: Tensor) -> None:
        """Ends a step: updates which latents are dead and sets each parameter's `grad`.

        `fired` [S] bool says which latents were above 0 on any token of this rank.
        Raises ValueError if no gradient was added to a parameter, whose buffer still holds the last step's.
        """
        forgotten = self.parameters.keys() - self._begun
        if forgotten:
            raise ValueError(f"no gradient of {', '.join(sorted(forgotten))}")
        self.begun.zero_()
        self.steps_since_fired.add_(1).masked_fill_(self.ranks.any_(fired), 0)
        grad = self.grad["W_dec"]
        # Spec 2.5: from the gradient g of each decoder row w, its component along w is subtracted.
        # |w| = 1, so that component is (g . w) w. (`einsum`, because `vecdot` first writes out all products.)
        along = torch.einsum("sd,sd->s", grad, self.W_dec)
        grad.addcmul_(along.unsqueeze(1), self.W_dec, value=-1)
        for name, parameter in self.parameters.items():
            parameter.grad = self.grad[name]

    def sae(self) -> Sae:
        return Sae(self.encoder.T, self.b_enc, self.W_dec, self.b_dec)
