"""Checks of the Triton kernels, run by Triton's interpreter on the CPU (`test_kernels.py` starts this)."""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor

from pipeline.latents import SparseLatents
from pipeline.saes import codes as sparse
from pipeline.saes import encoding, kernels
from pipeline.saes.codes import SparseCodes
from pipeline.saes.encoding import Encoder, positive_codes, top_codes


def entries(h: Tensor, bound: Tensor) -> SparseCodes:
    """What `kernels.places` finds, by torch."""
    kept = h.float() >= bound.expand(len(h)).unsqueeze(1)
    token, latent = kept.nonzero(as_tuple=True)
    offsets = torch.nn.functional.pad(torch.bincount(token, minlength=len(h)).cumsum(0), (1, 0))
    return SparseCodes(SparseLatents(offsets, latent.int(), h.float()[kept], h.shape[1]))


def check(n: int, n_latents: int, width: int, dtype: torch.dtype, bound: Tensor) -> None:
    h = torch.randn(n, n_latents).to(dtype)
    A, W = torch.randn(n, width), torch.randn(n_latents, width)
    codes = entries(h, bound)
    plain = codes.entries
    places = kernels.places(h, bound)
    assert torch.equal(places, codes.entries.token() * n_latents + plain.latent)
    offsets, latent, value = plain.offsets, plain.latent, plain.value
    close = torch.testing.assert_close
    close(kernels.weighted_sums(latent, value, offsets, W), codes.decode(value, W), rtol=1e-5, atol=1e-4)
    found = kernels.products(A, W, latent, offsets)
    close(found, codes.products(A, W), rtol=1e-5, atol=1e-4)
    order, token, bounds = codes._by_latent
    gradient = kernels.weighted_sums(token, value[order], bounds, A)
    close(gradient, codes.transposed_product(value, A, torch.empty_like(gradient)), rtol=1e-5, atol=1e-4)


def check_step(dtype: torch.dtype) -> None:
    """The sparse products of a step, with the kernels in the places they have on a card."""
    x, W, bias = torch.randn(40, 24), torch.randn(500, 24), torch.randn(500)

    def step() -> list[Tensor]:
        encoder = Encoder(x, W, bias, dtype)
        [(_, positive)] = positive_codes(encoder, max_density=1.0)
        found = []
        for codes in (top_codes(encoder, 7), positive):
            found += [codes.values, codes.decode(codes.values, W), codes.products(x, W)]
            gradient = codes.transposed_product(codes.values, x, torch.empty_like(W))
            found += [gradient, codes.per_latent(codes.values)]
        return found

    plain = step()
    with (
        mock.patch.object(sparse, "kernels_for", return_value=kernels) as decoding,
        mock.patch.object(encoding, "kernels_for", return_value=kernels) as finding,
    ):
        found = step()
    assert decoding.called and finding.called
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


if __name__ == "__main__":
    torch.manual_seed(0)
    check(5, 37, 8, torch.float32, torch.tensor(1.0))
    check(7, 1300, 300, torch.bfloat16, torch.rand(7) + 1)  # more columns than a block, bounds per token
    check(3, 64, 20, torch.float32, torch.tensor([-9.0, 9.0, 0.5]))  # everything, nothing, and some
    check(2, 16, 4, torch.float32, torch.tensor(99.0))  # nothing at all
    check_step(torch.float32)
    check_step(torch.bfloat16)
    assert kernels.usable("cpu")
    print("kernels agree")
