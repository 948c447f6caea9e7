"""Which masks of an image differ, so that each is classified once.

Two masks do the same to an image if they have the same latents among those that fire on it. This is often so: the
first latents of a class under two backbones, the latents of the label and of the prediction, and random latents, of
which most fire on few images.

Shapes: B images, S latents, K ranked latents, M rankings, k the number of `ks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.saes.sparse.latents import DenseLatents, Latents, SparseLatents


def keys_of(n_latents: int, device: str = "cpu") -> Tensor:
    """A random 64-bit number for every latent, the same on every machine: int64 [S]."""
    raw = np.random.PCG64(20).random_raw(n_latents)
    return torch.from_numpy(raw.view(np.int64)).to(device)


def fired_in(latents: Latents, images: int) -> Tensor:
    """Whether each latent is above 0 on a token of each image: bool [B, S]."""
    if isinstance(latents, DenseLatents):
        return latents.value.view(images, -1, latents.value.shape[1]).amax(dim=1) > 0
    assert isinstance(latents, SparseLatents)
    found = torch.zeros(images, latents.n_latents, dtype=torch.bool, device=latents.latent.device)
    tokens_per_image = latents.n_tokens // images
    found[latents.token() // tokens_per_image, latents.latent.long()] = True
    return found


def signatures(fired: Tensor | None, ranking: Tensor, ks: np.ndarray, keys: Tensor, images: int) -> Tensor:
    """The sum of the keys of the top k latents, for each of the ascending `ks`: int64 [k, B].

    With `fired` only latents that fire on the image count, and the sum of none is 0. `ranking` [B, K] or [1, K]. Sums
    wrap around. That two different sets of latents have the same sum is as likely as a guess of 64 bits.
    """
    if not len(ks):
        return torch.zeros(0, images, dtype=torch.int64)
    top = ranking[:, : int(ks[-1])]
    found = keys[top].expand(images, -1)
    if fired is not None:
        found = torch.where(fired.gather(1, top.expand(images, -1)), found, 0)
    return found.cumsum(1)[:, torch.from_numpy(ks - 1).to(found.device)].T


@dataclass(frozen=True)
class Distinct:
    """The distinct masks of a block of images. Number 0 is a mask without latents, which no image needs computed."""

    number: np.ndarray  # [M, k, B] int64: the number of the mask
    first: np.ndarray  # [M, k, B] bool: where a mask occurs first, and has to be computed
    n: int

    @classmethod
    def of(cls, found: Sequence[Tensor]) -> Distinct:
        """From the `signatures` of every ranking."""
        signature = torch.stack(list(found)).cpu().numpy()
        shape = signature.shape
        flat, image = signature.reshape(-1), np.broadcast_to(np.arange(shape[-1]), shape).reshape(-1)
        # The sort is stable, so that of equal masks the one of the first ranking and the smallest k leads.
        order = np.lexsort((flat, image))
        leads = np.ones(len(order), bool)
        leads[1:] = (np.diff(flat[order]) != 0) | (np.diff(image[order]) != 0)
        leads &= flat[order] != 0
        number, first = np.zeros(len(order), np.int64), np.zeros(len(order), bool)
        number[order] = np.where(flat[order] != 0, np.cumsum(leads), 0)
        first[order[leads]] = True
        return cls(number.reshape(shape), first.reshape(shape), int(leads.sum()) + 1)
