"""Blocks computed for a gradient, and after tokens that all sequences begin with, against open_clip's own."""

from __future__ import annotations

import torch

from patchsae.pipeline.backbones.towers.blocks import run_block, run_causal
from tests.support.clips import random_clip


def test_a_block_gives_the_same_with_a_gradient_and_without() -> None:
    clip = random_clip()
    for tower, width, mask in (
        (clip.model.visual.transformer, 32, None),
        (clip.model.transformer, 24, clip.model.attn_mask[:9, :9]),
    ):
        block, x = tower.resblocks[1], torch.randn(2, 9, width, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = block(x, attn_mask=mask)
        torch.testing.assert_close(run_block(block, x.requires_grad_(), mask), expected, rtol=1e-4, atol=1e-5)


def test_tokens_that_sequences_begin_with_are_computed_once_for_all() -> None:
    clip = random_clip()
    block, mask = clip.model.transformer.resblocks[0], clip.model.attn_mask[:7, :7]
    generator = torch.Generator().manual_seed(0)
    shared, own = torch.randn(1, 3, 24, generator=generator), torch.randn(5, 4, 24, generator=generator)
    whole = torch.cat([shared.expand(5, -1, -1), own], dim=1)
    with torch.no_grad():
        expected = block(whole, attn_mask=mask)
        first, before = run_causal(block, shared)
        rest, _ = run_causal(block, own, before)
    torch.testing.assert_close(first, expected[:1, :3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rest, expected[:, 3:], rtol=1e-4, atol=1e-5)


def test_a_block_with_another_attention_is_left_to_itself() -> None:
    clip = random_clip()
    block = clip.model.visual.transformer.resblocks[0]
    x = torch.randn(2, 5, 32).requires_grad_()
    before = run_block(block, x)

    class Nothing(torch.nn.Module):
        def forward(self, x: torch.Tensor, *others: object, **settings: object) -> tuple[torch.Tensor, None]:
            return torch.zeros_like(x), None

    block.attn = Nothing()
    assert not torch.allclose(run_block(block, x), before)
    torch.testing.assert_close(run_block(block, x), block(x))


def test_blocks_in_bfloat16_stay_near_float32_and_so_do_their_gradients() -> None:
    clip = random_clip()
    block, mask = clip.model.transformer.resblocks[0], clip.model.attn_mask[:7, :7]
    x = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(0))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        block, leaf = block.to(dtype), x.clone().requires_grad_()
        after, _ = run_causal(block, leaf.to(dtype))
        masked = run_block(block, leaf.to(dtype), mask)
        (after.float() * x + masked.float() * x).sum().backward()
        assert leaf.grad is not None
        found.append((after.float(), masked.float(), leaf.grad))
    for full, half in zip(*found, strict=True):
        assert float(((half - full).norm() / full.norm()).detach()) < 0.02
