"""`PromptVectors`: the prompt tokens that both towers get, and the names under which they are saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

STD = 0.02
"""The standard deviation of random prompts, in CoOp, VPT, MaPLe and PromptSRC alike."""


@dataclass(frozen=True)
class Size:
    """How many prompt tokens a tower gets, in how many of its blocks, and the fields that say so."""

    n: int
    depth: int
    n_field: str = "n_ctx"
    depth_field: str = "depth"


@dataclass(frozen=True)
class PromptVectors:
    """Prompt tokens by block. Block n of a tower gets the n-th of its tensors; the blocks after the last go on
    with what the block before them made of the tokens.
    """

    image: Sequence[Tensor] = ()
    """float32 [n, d] each; the first goes in before the tower's first norm, after the positional embedding."""
    text: Sequence[Tensor] = ()
    """float32 [n, w] each; the first stands for embeddings of words."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> PromptVectors:
        """Those saved as `image.0`, `image.1`, ... and `text.0`, `text.1`, ..."""
        return cls(sequence(tensors, "image"), sequence(tensors, "text"))


def sequence(named: Mapping[str, T], name: str) -> list[T]:
    """What is called `name.0`, `name.1`, ... up to the last."""
    found: list[T] = []
    while (one := named.get(f"{name}.{len(found)}")) is not None:
        found.append(one)
    return found


def random_prompts(
    name: str, depth: int, n: int, width: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Prompts of `depth` blocks, normal with standard deviation `STD`: `name.0`, ..., float32 [n, width] each."""
    return {f"{name}.{block}": torch.randn((n, width), generator=generator) * STD for block in range(depth)}
