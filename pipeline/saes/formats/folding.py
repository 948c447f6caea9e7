"""Conversion of other forms of SAEs to ours: the same function, with constants folded into the weights.

The formats of this folder use it. Our form is `h = (x - b_dec) W_enc + b_enc`, `f = relu(h)` where above a
threshold, `x_hat = f W_dec + b_dec`. Sums are computed in float64, so that folding only adds the last
rounding to float32.

Shapes: d channels, S latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae.pipeline.saes.sae import Sae


def centred_bias(W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """Our `b_enc` [S] for an SAE that encodes `x W_enc + b_enc`, without subtracting `b_dec` first."""
    return (b_enc.double() + b_dec.double() @ W_enc.double()).float()


def uncentred_bias(sae: Sae) -> Tensor:
    """The encoder bias [S] of the same SAE in a form that does not subtract `b_dec` first."""
    return (sae.b_enc.double() - sae.b_dec.double() @ sae.W_enc.double()).float()


def gated(W_enc: Tensor, b_gate: Tensor, b_mag: Tensor, r_mag: Tensor, W_dec: Tensor, b_dec: Tensor) -> Sae:
    """A gated SAE as a JumpReLU.

    With p = (x - b_dec) W_enc, a gated SAE is `f = relu(exp(r) p + b_mag)` where `p + b_gate > 0`. That is
    where the magnitude is above the threshold `b_mag - exp(r) b_gate` (`pipeline.training.objectives.gated`).
    """
    scale = r_mag.double().exp()
    threshold = (b_mag.double() - scale * b_gate.double()).clamp(min=0)
    return Sae((W_enc.double() * scale).float(), b_mag, W_dec, b_dec, threshold.float())


def selected_in_decoder_lengths(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Our `W_enc`, `b_enc`, `W_dec` for an SAE that compares latents times the norm of their decoder row."""
    length = torch.linalg.vector_norm(W_dec.double(), dim=1)
    return (
        (W_enc.double() * length).float(),
        (b_enc.double() * length).float(),
        (W_dec.double() / length[:, None]).float(),
    )
