"""One latent alone is what the whole encoder finds of it, for every activation function."""

from __future__ import annotations

import pytest
import torch

from patchsae.pipeline.saes import single
from patchsae.pipeline.saes.encode import LatentEncoder
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.single import one_latent

D, S, N = 24, 300, 500


def sae(k: int | None, threshold: bool) -> Sae:
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(D, S, generator=generator)
    return Sae(
        W_enc,
        0.5 * torch.randn(S, generator=generator),
        W_enc.T / W_enc.norm(dim=0)[:, None],
        torch.randn(D, generator=generator),
        torch.rand(S, generator=generator) * 4 if threshold else None,
        k,
    )


@pytest.mark.parametrize("threshold", [False, True])
@pytest.mark.parametrize("k", [None, 1, 7, 299])
def test_it_is_its_column_of_all_latents(
    k: int | None, threshold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single, "_CHUNK", 64)  # several chunks, and a last one that is not full
    one = sae(k, threshold)
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    dense, sparse = one.encode(x), LatentEncoder(one)(x)
    on = 0
    for latent in (0, 63, 64, 150, 299):
        found = one_latent(one, x, latent)
        torch.testing.assert_close(found, dense[:, latent], rtol=1e-5, atol=1e-5)
        mine = sparse.latent == latent
        by_encoder = torch.zeros(N)
        by_encoder[sparse.token()[mine]] = sparse.value[mine]
        torch.testing.assert_close(found, by_encoder, rtol=1e-5, atol=1e-5)
        on += int((found > 0).sum())
    assert on > 5


def test_tokens_are_given_up_as_soon_as_k_others_are_above(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single, "_CHUNK", 30)
    one, seen = sae(2, False), []
    whole = single._chunk

    def counting(sae: Sae, x: torch.Tensor, latents: slice) -> torch.Tensor:
        seen.append(len(x))
        return whole(sae, x, latents)

    monkeypatch.setattr(single, "_chunk", counting)
    one_latent(one, torch.randn(N, D, generator=torch.Generator().manual_seed(1)), 5)
    assert seen[0] == N and sum(seen[1:]) < 2 * N < 10 * seen[1], seen
