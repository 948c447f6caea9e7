"""Checks of the Triton kernels, run by Triton's interpreter on the CPU (`test_kernels.py` starts this)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest import mock

import torch
from torch import Tensor

from patchsae.pipeline.saes.encode import EncoderChoice, LatentEncoder
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse import encoder as encoding
from patchsae.pipeline.saes.sparse import kernels
from patchsae.pipeline.saes.sparse import products as sparse
from patchsae.pipeline.saes.sparse.encoder import Encoder, EncoderWeights, positive_latents, top_latents
from patchsae.pipeline.saes.sparse.latents import SparseLatents


def entries(h: Tensor, bound: Tensor) -> SparseLatents:
    """What `kernels.places` finds, by torch."""
    kept = h.float() >= bound.expand(len(h)).unsqueeze(1)
    token, latent = kept.nonzero(as_tuple=True)
    offsets = torch.nn.functional.pad(torch.bincount(token, minlength=len(h)).cumsum(0), (1, 0))
    return SparseLatents(offsets, latent.int(), h.float()[kept], h.shape[1])


def check(n: int, n_latents: int, width: int, dtype: torch.dtype, bound: Tensor) -> None:
    h = torch.randn(n, n_latents).to(dtype)
    A, W = torch.randn(n, width), torch.randn(n_latents, width)
    latents = entries(h, bound)
    places = kernels.places(h, bound)
    assert torch.equal(places, latents.token() * n_latents + latents.latent)
    offsets, latent, value = latents.offsets, latents.latent, latents.value
    close = torch.testing.assert_close
    close(kernels.weighted_sums(latent, value, offsets, W), latents.decode(value, W), rtol=1e-5, atol=1e-4)
    found = kernels.products(A, W, latent, offsets)
    close(found, latents.products(A, W), rtol=1e-5, atol=1e-4)
    order, token, bounds = latents._by_latent
    gradient = kernels.weighted_sums(token, value[order], bounds, A)
    close(gradient, latents.transposed_product(value, A, torch.empty_like(gradient)), rtol=1e-5, atol=1e-4)


def check_with_and_without(work: Callable[[], Sequence[Tensor]]) -> None:
    """That `work` gives the same with the kernels in the places they have on a card."""
    plain = work()
    with (
        mock.patch.object(sparse, "kernels_for", return_value=kernels) as decoding,
        mock.patch.object(encoding, "kernels_for", return_value=kernels) as finding,
    ):
        found = work()
    assert decoding.called and finding.called
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def check_step(dtype: torch.dtype) -> None:
    """The sparse products of a step."""
    x, W, bias = torch.randn(40, 24), torch.randn(500, 24), torch.randn(500)

    def step() -> list[Tensor]:
        encoder = Encoder(x, EncoderWeights(W, bias, dtype))
        [(_, positive)] = positive_latents(encoder, max_density=1.0)
        found = []
        for latents in (top_latents(encoder, 7), positive):
            value = latents.value
            found += [value, latents.decode(value, W), latents.products(x, W)]
            gradient = latents.transposed_product(value, x, torch.empty_like(W))
            found += [gradient, latents.per_latent(value)]
        return found

    check_with_and_without(step)


def check_latents(precision: str, threshold: bool, k: int | None) -> None:
    """The latents evaluations see."""
    x, W = torch.randn(40, 24), torch.randn(24, 500)
    sae = Sae(W, torch.randn(500), W.T, torch.randn(24), torch.rand(500) if threshold else None, k)

    def encode() -> list[Tensor]:
        latents = LatentEncoder(sae, EncoderChoice(precision, 1.0))(x)
        return [latents.offsets, latents.latent, latents.value, latents.decode(latents.value, sae.W_dec)]

    check_with_and_without(encode)


if __name__ == "__main__":
    torch.manual_seed(0)
    check(5, 37, 8, torch.float32, torch.tensor(1.0))
    check(7, 1300, 300, torch.bfloat16, torch.rand(7) + 1)  # more columns than a block, bounds per token
    check(3, 64, 20, torch.float32, torch.tensor([-9.0, 9.0, 0.5]))  # everything, nothing, and some
    check(2, 16, 4, torch.float32, torch.tensor(99.0))  # nothing at all
    for dtype in (torch.float32, torch.bfloat16):
        check_step(dtype)
    for precision in ("float32", "bfloat16"):
        for threshold, k in ((False, None), (True, None), (False, 7), (True, 7)):
            check_latents(precision, threshold, k)
    assert kernels.usable("cpu")
    print("kernels agree")
