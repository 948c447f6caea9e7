"""Adapter `lora`: low-rank changes of the image tower's attention (CLIP-LoRA, arXiv 2405.18541).

Shapes: d channels, r rank, n images, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, linear, scaled_dot_product_attention

from patchsae.pipeline.adapters.adapter import (
    Adapter,
    AdapterConfig,
    Batch,
    Stateless,
    Task,
    cannot_adapt,
    unit_features,
)
from patchsae.pipeline.backbones.backbone import Backbone, Outline

_PRODUCTS = ("q", "k", "v")
_STEPS_PER_SHOT, _SHOTS = 500, 16


class LoraConfig(AdapterConfig):
    """Low-rank changes of the products that make queries, keys and values, in every block of the image tower.

    W becomes W + (alpha / rank) B A. The defaults are CLIP-LoRA's (arXiv 2405.18541 and its code): 500 steps per
    shot, AdamW, and a rate that falls along a cosine from step to step. It also changes the text tower, and this
    method does not, so that class embeddings stay those of the prompts.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(2, ge=1)
    """The rank r of a change: A is r x d, B is d x r."""
    alpha: float = Field(1.0, gt=0)
    """The factor of a change, beside 1 / rank."""
    dropout: float = Field(0.25, ge=0, lt=1)
    """The share of the channels that A is not given, in training."""
    optimiser: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(2e-4, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    batch_size: int = Field(32, ge=1)
    steps: int | None = Field(_STEPS_PER_SHOT * _SHOTS, ge=1)
    """The number of steps. CLIP-LoRA takes 500 per shot, so write 2000 for 4 shots."""
    schedule: Literal["epoch", "step", "constant"] = "step"
    warmup_epochs: int = Field(0, ge=0)

    def check(self, outline: Outline) -> None:
        if outline.shapes and _in_proj(0) not in outline.shapes:
            raise cannot_adapt("lora", "the image tower is not open_clip's own vision transformer")
        if self.rank > outline.width:
            raise cannot_adapt("lora", f"rank {self.rank} exceeds the {outline.width} channels of the tower")

    def begin(self, backbone: Backbone, task: Task, generator: torch.Generator) -> Adapter:
        return Lora(self, backbone, task, generator)

    def apply(self, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Backbone:
        """Adds the changes to the weights, so that the adapted tower takes no more time."""
        state = backbone.state()
        with torch.no_grad():
            for block in range(backbone.n_blocks):
                weight = state[_in_proj(block)]
                for part, product in zip(weight.chunk(3), _PRODUCTS, strict=True):
                    a, b = (tensors[f"{block}.{product}.{side}"] for side in "AB")
                    part += (self.alpha / self.rank * b @ a).to(part)
        backbone.settings["adapter"] = "lora"
        return backbone


def _in_proj(block: int) -> str:
    return f"visual.transformer.resblocks.{block}.attn.in_proj_weight"


class LoraAttention(nn.Module):
    """An attention layer of the tower with trainable low-rank changes."""

    def __init__(
        self,
        attention: nn.MultiheadAttention,
        changes: Mapping[str, tuple[Tensor, Tensor]],
        factor: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = attention
        self.changes = changes
        self.factor = factor
        self.dropout = dropout

    def forward(self, x: Tensor, *others: Any, **settings: Any) -> tuple[Tensor, None]:
        """[n, T, d] -> [n, T, d]."""
        layer = self.attention
        products = []
        for weight, bias, name in zip(
            layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), _PRODUCTS, strict=True
        ):
            a, b = self.changes[name]
            change = linear(linear(dropout(x, self.dropout), a), b)
            found = linear(x, weight, bias) + self.factor * change
            products.append(found.unflatten(2, (layer.num_heads, -1)).transpose(1, 2))
        attended = scaled_dot_product_attention(*products).transpose(1, 2).flatten(2)
        return linear(attended, layer.out_proj.weight, layer.out_proj.bias), None


class Lora(Stateless):
    """Implements `Adapter`. A begins with Kaiming-uniform numbers and B with zeros, so that nothing changes at first."""

    def __init__(self, config: LoraConfig, backbone: Any, task: Task, generator: torch.Generator) -> None:
        self.backbone: Backbone = backbone
        self.embeddings = task.embeddings
        parameters: dict[str, Tensor] = {}
        self.parameters = parameters
        for number, block in enumerate(backbone.blocks):
            changes = {}
            for product in _PRODUCTS:
                bound = 1 / math.sqrt(backbone.width)
                a = torch.empty(config.rank, backbone.width).uniform_(-bound, bound, generator=generator)
                b = torch.zeros(backbone.width, config.rank)
                changes[product] = (
                    a.to(backbone.device).requires_grad_(),
                    b.to(backbone.device).requires_grad_(),
                )
                for side, tensor in zip("AB", changes[product], strict=True):
                    parameters[f"{number}.{product}.{side}"] = tensor
            block.attn = LoraAttention(block.attn, changes, config.alpha / config.rank, config.dropout)

    def loss(self, batch: Batch) -> Tensor:
        assert batch.images is not None
        features = unit_features(self.backbone, batch.images)
        return cross_entropy(self.backbone.logit_scale * features @ self.embeddings.T, batch.labels)
