"""Sparse latents against `Sae.encode`, in whole numbers, of which float32 sums are exact in any order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from patchsae.pipeline.saes.encode import EncoderChoice, LatentEncoder
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse import encoder as encoder_module
from patchsae.pipeline.saes.sparse.encoder import TINY, Encoder, EncoderWeights, bound_of_largest, max_density
from patchsae.pipeline.saes.sparse.latents import DenseLatents, SparseLatents, tokens_per_block

D, S, K = 16, 210, 9
KINDS = {"relu": (False, None), "threshold": (True, None), "k": (False, K), "k_threshold": (True, K)}
CHOICES = [
    EncoderChoice(precision, max_density)
    for precision in ("float32", "bfloat16")
    for max_density in (0.0, 1.0)
]


def integers(low: int, high: int, *shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).float()


def sae_of(kind: str) -> Sae:
    """Weights of ten bits, of which bfloat16 keeps eight."""
    has_threshold, k = KINDS[kind]
    threshold = integers(0, 4000, S, seed=5) if has_threshold else None
    W_enc, b_enc = integers(-1023, 1023, D, S, seed=1), integers(-60_000, 500, S, seed=2)
    return Sae(W_enc, b_enc, integers(-9, 9, S, D, seed=3), integers(-1, 1, D, seed=4), threshold, k)


def tokens() -> Tensor:
    """Tokens whose lengths are far apart; in a third of them one channel stands out."""
    n = 300
    length = torch.tensor([1, 5, 30, 255]).repeat(n // 4).unsqueeze(1)
    x = (integers(-1000, 1000, n, D, seed=6) * length / 1000).round()
    x[::3, 0] = integers(1500, 2047, n // 3, seed=7)
    return x


def without_ties(sae: Sae, x: Tensor) -> Tensor:
    """The tokens of which it is clear which k latents are the largest."""
    if sae.k is None:
        return x
    every = Sae(sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec, sae.threshold).encode(x)
    largest = every.topk(sae.k + 1, dim=1).values
    return x[(largest[:, -2] > largest[:, -1]) | (largest[:, -2] == 0)]


def dense(latents: SparseLatents) -> Tensor:
    found = torch.zeros(latents.n_tokens, latents.n_latents)
    found[latents.token(), latents.latent.long()] = latents.value
    return found


def check(sae: Sae, x: Tensor, choice: EncoderChoice) -> None:
    """That exactly the latents of `Sae.encode` are found, with its numbers."""
    expected = sae.encode(x)
    latents = LatentEncoder(sae, choice)(x)
    assert (latents.value > 0).all()
    assert latents.offsets.diff().tolist() == (expected > 0).sum(dim=1).tolist()
    same_token = latents.token().diff() == 0
    assert (latents.latent.diff()[same_token] > 0).all()
    assert torch.equal(dense(latents), expected)
    decoded, product = latents.decode(latents.value, sae.W_dec), expected.double() @ sae.W_dec.double()
    torch.testing.assert_close(decoded.double(), product, rtol=1e-5, atol=1e-6 * product.abs().max().item())


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_latents_of_the_dense_encoder_are_found(kind: str, choice: EncoderChoice) -> None:
    sae = sae_of(kind)
    x = without_ties(sae, tokens())
    assert len(x) > 250
    n_active = (sae.encode(x) > 0).sum(dim=1)
    assert n_active.min() < K <= n_active.max()
    check(sae, x, choice)
    # The same for what is alone in its batch.
    for token in x[:8]:
        check(sae, token[None], choice)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_where_rounding_takes_the_most(kind: str, choice: EncoderChoice) -> None:
    # 257 is halfway between two numbers of bfloat16, and goes down.
    has_threshold, k = KINDS[kind]
    W = torch.full((D, S), 257.0)
    threshold = torch.full((S,), 3.0) if has_threshold else None
    # A few latents are a hair above 0, or above their threshold; all others are exactly there, which is off.
    above = torch.zeros(S)
    above[[0, 17, 100, 209]] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    bias = above - D * 257.0**2 + (0 if threshold is None else threshold)
    sae = Sae(W, bias, W.T.contiguous(), torch.zeros(D), threshold, k)
    x = torch.full((2, D), 257.0)
    assert (sae.encode(x) > 0).sum(dim=1).tolist() == [4, 4]
    check(sae, x, choice)


def test_bfloat16_alone_would_lose_some() -> None:
    sae, x = sae_of("relu"), tokens()
    h = Encoder(x - sae.b_dec, EncoderWeights(sae.W_enc.T, sae.b_enc, torch.bfloat16)).dense(slice(None))
    raised = Encoder(x - sae.b_dec, EncoderWeights(sae.W_enc.T, sae.b_enc, torch.bfloat16, never_below=True))
    is_on = sae.encode(x) > 0
    assert (h[is_on] <= 0).any()
    assert (raised.dense(slice(None))[is_on] > 0).all()


def test_the_bound_of_the_largest_keeps_the_largest() -> None:
    """Whatever bfloat16 raised: every entry of the k largest reaches it, and few others do."""
    sae, x = sae_of("k"), tokens()
    exact = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    weights = EncoderWeights(sae.W_enc.T, sae.b_enc, torch.bfloat16, never_below=True)
    encoder = Encoder(x - sae.b_dec, weights)
    h = encoder.dense(slice(None)).float()
    # Beside what is added on purpose, h itself is rounded to bfloat16.
    rounded = h.abs() * 2**-8
    assert (h + rounded >= exact).all()
    # Token by token: one long token must not let in what short ones do not need.
    assert (h - rounded - exact <= encoder.most_raised() * 1.01).all()
    assert encoder.most_raised().max() > 10 * encoder.most_raised().min()
    bound = (bound_of_largest(h, K) - encoder.most_raised()).clamp(min=TINY)
    kth = exact.topk(K, dim=1).values[:, -1:].clamp(min=TINY)
    assert (h >= bound)[exact >= kth].all()


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_smaller_blocks_hold_the_same(
    kind: str, choice: EncoderChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = sae_of(kind)
    x = without_ties(sae, tokens())
    whole = LatentEncoder(sae, choice)(x)
    monkeypatch.setattr(encoder_module, "tokens_per_block", lambda n_latents: 7)
    monkeypatch.setattr(encoder_module, "_LEAST_ROWS", 7)
    monkeypatch.setattr(encoder_module, "_MAX_ENTRIES", 0)
    monkeypatch.setattr(encoder_module, "_CACHED_ELEMENTS", 3 * S)
    encoder = LatentEncoder(sae, choice)
    assert len(list(encoder.blocks(x))) == -(-len(x) // 7)
    blocks = encoder(x)
    for name in ("offsets", "latent", "value"):
        assert torch.equal(getattr(whole, name), getattr(blocks, name)), name


def test_the_density_of_what_is_kept_decides_between_dense_and_sparse() -> None:
    x = tokens()
    for kind, low, high in (("relu", 0.2, 0.4), ("k", 0.9 * K / S, 1.1 * K / S)):
        for most, expected in ((low, DenseLatents), (high, SparseLatents)):
            [(rows, latents)] = LatentEncoder(sae_of(kind), EncoderChoice("float32", most)).blocks(x)
            assert isinstance(latents, expected), (kind, most)
            assert (rows.start, rows.stop) == (0, len(x))


@pytest.mark.parametrize("choice", [EncoderChoice("float32", 0.2), EncoderChoice("bfloat16", 0.2)], ids=str)
def test_a_block_with_more_latents_than_expected_is_dense(choice: EncoderChoice) -> None:
    """Whether a batch is sparse is asked of one token in five; here the other four have many latents on."""
    sae = sae_of("relu")
    x = tokens()
    on = (sae.encode(x) > 0).sum(dim=1)
    few, many = x[on < 0.05 * S][0], x[on > 0.4 * S][0]
    x = many.repeat(300, 1)
    x[::5] = few
    encoder = LatentEncoder(sae, choice)
    [(rows, latents)] = encoder.blocks(x)
    assert isinstance(latents, DenseLatents) and (rows.start, rows.stop) == (0, len(x))
    assert torch.equal(latents.value, sae.encode(x))
    assert torch.equal(dense(encoder(x)), sae.encode(x))


@pytest.mark.parametrize("n", [1, 254, 256, 700])
def test_tokens_on_are_counted_alike(n: int) -> None:
    f = tokens()[:, :5].abs().repeat(3, 1)[:n]
    f[:, 0] = 1
    latents = DenseLatents(f)
    assert latents.n_tokens == latents.sparse().n_tokens == n
    assert torch.equal(latents.n_tokens_on(), (f > 0).sum(dim=0))
    assert torch.equal(latents.sparse().n_tokens_on(), (f > 0).sum(dim=0))


@pytest.mark.parametrize("n_latents", [64, 49_152, 196_608, 1_500_000])
def test_the_dense_latents_of_a_block_are_bounded(n_latents: int) -> None:
    assert 4 * n_latents * tokens_per_block(n_latents) <= 256e6


def test_weights_that_leave_the_cache_are_multiplied_densely_sooner() -> None:
    cpu = torch.device("cpu")
    assert max_density(cpu, 128, 2048, torch.bfloat16) == max_density(cpu, 128, 2048, torch.float32) == 0.2
    assert max_density(cpu, 768, 49_152, torch.float32) == 0.12
    assert max_density(cpu, 768, 49_152, torch.bfloat16) == 0.06


def test_an_sae_that_never_fires_has_no_latents() -> None:
    for kind in KINDS:
        sae = sae_of(kind)
        silent = Sae(sae.W_enc, sae.b_enc - 1e7, sae.W_dec, sae.b_dec, sae.threshold, sae.k)
        for choice in CHOICES:
            latents = LatentEncoder(silent, choice)(tokens())
            assert not len(latents.value) and latents.offsets.tolist() == [0] * 301
            assert not latents.decode(latents.value, sae.W_dec).any()


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_any_kind_come_close(kind: str, choice: EncoderChoice) -> None:
    """Weights and tokens of 24 bits: the same set wherever rounding does not decide."""
    generator = torch.Generator().manual_seed(9)
    has_threshold, k = KINDS[kind]

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    threshold = torch.rand(S, generator=generator) if has_threshold else None
    sae = Sae(randn(D, S), randn(S) - 2, randn(S, D), randn(D), threshold, k)
    x = randn(300, D) * torch.logspace(-2, 2, 300).unsqueeze(1)
    x[:, 3] += 40
    plain = Sae(sae.W_enc.double(), sae.b_enc.double(), sae.W_dec.double(), sae.b_dec.double())
    h = (x.double() - plain.b_dec) @ plain.W_enc + plain.b_enc
    rounding = 1e-5 * x.norm(dim=1, keepdim=True) * sae.W_enc.norm(dim=0)
    bounds = [torch.zeros(S)] + ([threshold] if threshold is not None else [])
    clear = torch.stack([((h - bound).abs() > rounding).all(dim=1) for bound in bounds]).all(dim=0)
    if k is not None:
        on = h if threshold is None else h * (h > threshold)
        largest = on.topk(k + 1, dim=1).values
        clear &= (largest[:, -2] - largest[:, -1] > 2 * rounding.max(dim=1).values) | (largest[:, -2] <= 0)
    x, expected = x[clear], sae.encode(x[clear])
    assert len(x) > 150
    found = dense(LatentEncoder(sae, choice)(x))
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_no_tokens_have_no_latents() -> None:
    sae, x = sae_of("k"), tokens()
    latents = LatentEncoder(sae)(x[:0])
    assert (latents.n_tokens, len(latents.value), latents.n_latents) == (0, 0, sae.n_latents)
