"""Other forms of an SAE as ours: the same function, with constants folded into the weights.

Ours is `h = (x - b_dec) W_enc + b_enc`, `f = relu(h)` where above a threshold, `x_hat = f W_dec + b_dec`. Sums are taken in
float64, so that folding costs no more than the last rounding to float32.

Shapes: d channels, S latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.saes.base import Sae


def centred_bias(W_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """Our `b_enc` [S] of an SAE that encodes `x W_enc + b_enc`, without taking `b_dec` off first."""
    return (b_enc.double() + b_dec.double() @ W_enc.double()).float()


def uncentred_bias(sae: Sae) -> Tensor:
    """The bias [S] of the same SAE where `b_dec` is not taken off first."""
    return (sae.b_enc.double() - sae.b_dec.double() @ sae.W_enc.double()).float()


def gated(W_enc: Tensor, b_gate: Tensor, b_mag: Tensor, r_mag: Tensor, W_dec: Tensor, b_dec: Tensor) -> Sae:
    """A gated SAE as a JumpReLU: with p = (x - b_dec) W_enc, `f = relu(exp(r) p + b_mag)` where `p + b_gate > 0`.

    The gate is open where the magnitude is above `b_mag - exp(r) b_gate` (`pipeline.saes.gated`).
    """
    scale = r_mag.double().exp()
    threshold = (b_mag.double() - scale * b_gate.double()).clamp(min=0)
    return Sae((W_enc.double() * scale).float(), b_mag, W_dec, b_dec, threshold.float())


def selected_in_decoder_lengths(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`W_enc`, `b_enc`, `W_dec` of an SAE that compares latents times the length of their decoder row."""
    length = torch.linalg.vector_norm(W_dec.double(), dim=1)
    return (
        (W_enc.double() * length).float(),
        (b_enc.double() * length).float(),
        (W_dec.double() / length[:, None]).float(),
    )
