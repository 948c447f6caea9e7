"""One latent on many tokens, without the others: for the maps of a latent on the images that a page shows.

Shapes: n tokens, d channels, S latents, C latents of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae.pipeline.saes.sae import Sae

# Latents that are compared with the one at a time, while there are tokens on which it may be among the k largest.
_CHUNK = 2048


@torch.inference_mode()
def one_latent(sae: Sae, x: Tensor, latent: int) -> Tensor:
    """The activation of `latent` on tokens x [n, d]: float32 [n], equal to its column of `Sae.encode(x)`.

    Only the latent's own column of W_enc is multiplied. With `k`, the other latents are computed too, but only on
    tokens on which it is above 0 and fewer than k others were found above it so far.
    """
    f = _chunk(sae, x, slice(latent, latent + 1)).squeeze(1)
    if sae.k is None:
        return f
    tokens = f.nonzero().squeeze(1)
    n_above = torch.zeros(len(tokens), dtype=torch.int64)
    for start in range(0, sae.n_latents, _CHUNK):
        if not len(tokens):
            break
        others = _chunk(sae, x[tokens], slice(start, min(start + _CHUNK, sae.n_latents)))
        if start <= latent < start + _CHUNK:
            others[:, latent - start] = 0  # Another product may round the latent's own value otherwise.
        n_above += (others > f[tokens, None]).sum(dim=1)
        is_left = n_above < sae.k
        f[tokens[~is_left]] = 0
        tokens, n_above = tokens[is_left], n_above[is_left]
    return f


def _chunk(sae: Sae, x: Tensor, latents: slice) -> Tensor:
    """The latents of a slice on tokens x [n, d], before `k` is looked at: [n, C]."""
    W_enc = sae.W_enc[:, latents]
    f = torch.addmm(sae.b_enc[latents] - sae.b_dec @ W_enc, x, W_enc).relu_()
    return f if sae.threshold is None else f.masked_fill_(f <= sae.threshold[latents], 0)
