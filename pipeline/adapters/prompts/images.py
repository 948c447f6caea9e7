"""Prompt tokens in an image tower: behind the tokens of the image, block by block.

Shapes: B images, T tokens of an image, n prompt tokens, d channels, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchsae.pipeline.backbones.towers.vit import Before, ClipVit


def inserting(clip: ClipVit, prompts: Sequence[Tensor]) -> Before:
    """What `ClipVit.features` applies to the input of each block, for prompts [n, d] of the first blocks.

    At the first block they are appended. At the next ones they take the place of what the block before made of
    them. The norm before the first block is one per token, so it is applied to them alone.
    """
    n = len(prompts[0]) if len(prompts) else 0

    def before(block: int, x: Tensor) -> Tensor:
        if block >= len(prompts):
            return x
        # Cast after expanding: its gradient is then summed over the images in float32.
        prompt = prompts[block].to(clip.device).expand(x.shape[0], -1, -1).to(x.dtype)
        if block == 0:
            return torch.cat([x, clip.visual.ln_pre(prompt)], dim=1)
        return torch.cat([x[:, :-n], prompt], dim=1)

    return before


def image_features(clip: ClipVit, tokens: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """The output of `ClipVit.tokens` [B, T, d] -> image features with prompts, float32 [B, E], not normalised."""
    return clip.features(tokens, 0, inserting(clip, prompts))
