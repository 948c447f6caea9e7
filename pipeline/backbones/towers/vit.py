"""`ClipVit`: a CLIP of open_clip whose image tower is open_clip's own VisionTransformer, cut at the hook.

Shapes: B images, T tokens, d channels at the hook, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from patchsae.pipeline.backbones.towers.clip import CutClip, cannot_cut
from patchsae.storage.tokens import TokenLayout

Before = Callable[[int, Tensor], Tensor]


class ClipVit(CutClip):
    """Implements `Backbone`. The kinds `open_clip` and `shapes_clip` build it."""

    @staticmethod
    def layout_of(visual: Any, name: str) -> TokenLayout:
        """The tokens of an image. Raises UserError if the tower cannot be cut."""
        if not isinstance(visual, VisionTransformer) or not visual.transformer.batch_first:
            raise cannot_cut(name, type(visual).__name__)
        rows, columns = visual.grid_size
        return TokenLayout(visual.positional_embedding.shape[0] - rows * columns, (rows, columns))

    @staticmethod
    def blocks_of(visual: VisionTransformer) -> tuple[list[nn.Module], int]:
        """The blocks of the tower, and its width."""
        return list(visual.transformer.resblocks), visual.positional_embedding.shape[1]

    def head(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> float32 [B, T, d]. The blocks after the hook are not run."""
        found = self.visual.forward_intermediates(
            images.to(self.device, self.dtype),
            indices=[self.hook_block],
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        prefix, patches = found["image_intermediates_prefix"][0], found["image_intermediates"][0]
        return torch.cat([prefix, patches], dim=1).float()

    def tail(self, activations: Tensor) -> Tensor:
        """float32 [B, T, d] -> float32 [B, E]."""
        return self.features(activations.to(self.device, self.dtype), self.hook_block + 1)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> the input of the first block: [B, T, d]."""
        x: Tensor = self.visual._embeds(images.to(self.device, self.dtype))
        return x

    def features(self, x: Tensor, first: int, before: Before | None = None) -> Tensor:
        """The input of block `first` [B, T, d] -> image features, float32 [B, E].

        `before(n, x)`, if given, replaces the input x of each block n. It may add tokens behind those of the
        image, which are left out where the tower pools tokens. If the tower's output is that of the class token,
        the last block is computed for the class token alone.
        """
        last = self.n_blocks - 1
        is_cut = self._pools_class_token() and _is_plain(self.blocks[last])
        for n in range(first, self.n_blocks):
            if before is not None:
                x = before(n, x)
            x = _class_token_of(self.blocks[n], x) if is_cut and n == last else self.blocks[n](x)
        pooled, _ = self.visual._pool(x[:, : self.layout.n_tokens])
        if self.visual.proj is not None:
            pooled = pooled @ self.visual.proj
        return pooled.float()

    def _pools_class_token(self) -> bool:
        return self.visual.attn_pool is None and self.visual.pool_type == "tok"


def _is_plain(block: Any) -> bool:
    """Whether a block computes what `_class_token_of` does."""
    return type(block) is ResidualAttentionBlock and type(block.attn) is nn.MultiheadAttention


def _class_token_of(block: Any, x: Tensor) -> Tensor:
    """The output of a block at token 0 alone: [B, T, d] -> [B, 1, d]."""
    y = x[:, :1] + block.ls_1(_class_token_attention(block.attn, block.ln_1(x)))
    out: Tensor = y + block.ls_2(block.mlp(block.ln_2(y)))
    return out


def _class_token_attention(attn: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """The output of self-attention at token 0 alone: [B, T, d] -> [B, 1, d].

    For a single query q, keys and values need not be computed: q (W_k x_t) = (q W_k) x_t for the scores, and
    sum_t a_t W_v x_t = W_v (sum_t a_t x_t) for the output. The bias of the keys adds the same number to all
    scores of a head, which softmax does not change. The weights a_t sum to 1, so the bias of the values is
    added once.
    """
    n_images, _, d = x.shape
    n_heads, head_width = attn.num_heads, attn.head_dim
    W_q, W_k, W_v = attn.in_proj_weight.chunk(3)
    b_q, _, b_v = attn.in_proj_bias.chunk(3)
    query = torch.nn.functional.linear(x[:, 0], W_q, b_q).view(n_images, n_heads, head_width)
    by_head = (n_heads, head_width, d)
    keyed = torch.einsum("bhe,hed->bhd", query * head_width**-0.5, W_k.view(by_head))
    weights = (keyed @ x.transpose(1, 2)).softmax(dim=-1)
    values = torch.einsum("bhd,hed->bhe", weights @ x, W_v.view(by_head)).flatten(1) + b_v
    out: Tensor = attn.out_proj(values)[:, None]
    return out
