"""One SAE of ours per activation, and what it computes by its formula."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae.pipeline.saes.sae import Sae
from tests.support.peer_saes import N_LATENTS, WIDTH, K


def make(activation: str) -> Sae:
    generator = torch.Generator().manual_seed(11)

    def randn(*shape: int) -> Tensor:
        return 0.6 * torch.randn(*shape, generator=generator)

    sae = Sae(randn(WIDTH, N_LATENTS), randn(N_LATENTS), randn(N_LATENTS, WIDTH), randn(WIDTH))
    thresholds = {
        "jump_relu": torch.rand(N_LATENTS, generator=generator),
        "batch_top_k": torch.full((N_LATENTS,), 0.7),
    }
    k = K if activation == "top_k" else None
    return Sae(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, thresholds.get(activation), k)


KINDS = ("relu", "top_k", "jump_relu", "batch_top_k")


def reconstruct(sae: Sae, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return sae.encode(x) @ sae.W_dec + sae.b_dec
