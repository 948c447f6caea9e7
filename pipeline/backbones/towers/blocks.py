"""Ways to compute a block of open_clip's transformers: for a gradient, and for the class token alone.

Shapes: B sequences, T tokens, d channels.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

KeysValues = tuple[Tensor, Tensor]


def is_plain(block: Any) -> bool:
    """Whether a block computes what the functions of this module do."""
    return type(block) is ResidualAttentionBlock and type(block.attn) is nn.MultiheadAttention


def run_block(block: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The output of a block: [B, T, d] -> [B, T, d]. `mask` [T, T] is added to the scores.

    With a gradient, torch's MultiheadAttention transposes its input before it multiplies it, and then copies the
    weights for every sequence: in bfloat16, training with it takes 13 times as long as with the products below.
    """
    if not torch.is_grad_enabled() or not is_plain(block):
        out: Tensor = block(x, attn_mask=mask)
        return out
    y = x + block.ls_1(_attention(block.attn, block.ln_1(x), mask))
    done: Tensor = y + block.ls_2(block.mlp(block.ln_2(y)))
    return done


def run_causal(block: Any, x: Tensor, before: KeysValues | None = None) -> tuple[Tensor, KeysValues]:
    """The output [B, T, d] of a plain block in which a token sees itself and those before it, and its keys and values.

    `before`: keys and values of P tokens that stand before every sequence, [1, heads, P, d / heads] each. So tokens
    that all sequences begin with are computed once.
    """
    attn = block.attn
    query, key, value = _products(attn, block.ln_1(x))
    own, n_before = (key, value), 0
    if before is not None:
        n_before = before[0].shape[2]
        key, value = (
            torch.cat([shared.expand(len(x), -1, -1, -1), one], dim=2)
            for shared, one in zip(before, own, strict=True)
        )
    hidden = torch.full((x.shape[1], key.shape[2]), -torch.inf, dtype=x.dtype, device=x.device)
    attended = _attended(query, key, value, hidden.triu(1 + n_before))
    y = x + block.ls_1(_joined(attn, attended))
    return y + block.ls_2(block.mlp(block.ln_2(y))), own


def _attention(attn: nn.MultiheadAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    """The output of self-attention: [B, T, d] -> [B, T, d]."""
    query, key, value = _products(attn, x)
    attended = _attended(query, key, value, None if mask is None else mask.to(x.dtype))
    return _joined(attn, attended)


def _products(attn: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values: [B, T, d] -> [B, heads, T, d / heads] each."""
    joint = linear(x, attn.in_proj_weight, attn.in_proj_bias)
    by_head = joint.unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
    query, key, value = by_head.unbind(0)
    return query, key, value


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(width of a head) + mask) v, for each head.

    On a CPU torch's fused function takes 3 to 12 times as long as these products in bfloat16, with its gradient. In
    float32 it is as fast, and takes less memory.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return scaled_dot_product_attention(query, key, value, mask)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    return (scores if mask is None else scores + mask).softmax(dim=-1) @ value


def _joined(attn: nn.MultiheadAttention, attended: Tensor) -> Tensor:
    """The heads' outputs [B, heads, T, d / heads], projected: [B, T, d]."""
    return linear(attended.transpose(1, 2).flatten(2), attn.out_proj.weight, attn.out_proj.bias)


def class_token_of(block: Any, x: Tensor) -> Tensor:
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
    query = linear(x[:, 0], W_q, b_q).view(n_images, n_heads, head_width)
    by_head = (n_heads, head_width, d)
    keyed = torch.einsum("bhe,hed->bhd", query * head_width**-0.5, W_k.view(by_head))
    weights = (keyed @ x.transpose(1, 2)).softmax(dim=-1)
    values = torch.einsum("bhd,hed->bhe", weights @ x, W_v.view(by_head)).flatten(1) + b_v
    out: Tensor = attn.out_proj(values)[:, None]
    return out
