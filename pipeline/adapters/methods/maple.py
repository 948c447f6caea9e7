"""Adapter `maple`: multi-modal prompt learning (Khattak et al. 2023, arXiv 2210.03117).

Prompts are learned in the first blocks of the text tower. Those of the image tower are an affine map of them, one
map per block: `image_n = W_n text_n + b_n`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import linear

from patchsae.pipeline.adapters.prompts.dassl import Names
from patchsae.pipeline.adapters.prompts.method import PromptConfig, Shapes
from patchsae.pipeline.adapters.prompts.towers import Towers
from patchsae.pipeline.adapters.prompts.vectors import PromptVectors, Size, random_prompts, sequence


class MapleConfig(PromptConfig):
    """MaPLe: deep prompts in the text tower, and maps of them in the image tower. The defaults are those of its code
    (`vit_b16_c2_ep5_batch4_2ctx.yaml`) for generalisation from base to novel classes; for transfer from ImageNet to
    other data sets it takes `depth: 3`, `lr: 0.0026` and `epochs: 2`."""

    kind: Literal["maple"] = "maple"
    n_ctx: int = Field(2, ge=1)
    """Prompt tokens in each tower (MaPLe's code: `N_CTX: 2`)."""
    depth: int = Field(9, ge=1)
    """Blocks of each tower that get prompts of their own (MaPLe's code: `PROMPT_DEPTH: 9`)."""
    context: str | None = "a photo of a"
    """The words that class prompts begin with, of which the first `n_ctx` are learned (MaPLe's code: `CTX_INIT`).
    If null, the learned ones begin at random, and there are no others."""
    lr: float = Field(0.0035, gt=0)
    """The learning rate (MaPLe's code: `LR: 0.0035`)."""
    epochs: int = Field(5, ge=1)
    """How often all drawn images are seen (MaPLe's code: `MAX_EPOCH: 5`)."""

    names = Names(
        "MaPLe",
        (
            (r"prompt_learner\.ctx", "text.0", 0),
            (r"prompt_learner\.compound_prompts_text\.(\d+)", "text.{0}", 1),
            (r"prompt_learner\.proj\.(weight|bias)", "projections.0.{0}", 0),
            (
                r"prompt_learner\.compound_prompt_projections\.(\d+)\.(weight|bias)",
                "projections.{0}.{1}",
                1,
            ),
        ),
    )

    def image_prompts(self) -> Size:
        return Size(self.n_ctx, self.depth)

    def text_prompts(self) -> Size:
        return Size(self.n_ctx, self.depth)

    def words(self) -> str | None:
        return self.context

    def shapes(self, towers: Towers) -> Shapes:
        shapes: Shapes = {}
        for block in range(self.depth):
            shapes[f"text.{block}"] = (self.n_ctx, towers.text_width)
            shapes[f"projections.{block}.weight"] = (towers.image_width, towers.text_width)
            shapes[f"projections.{block}.bias"] = (towers.image_width,)
        return shapes

    def initial(self, towers: Towers, generator: torch.Generator) -> dict[str, Tensor]:
        """The maps are uniform within 1 / sqrt(text width), as torch's Linear. Those after the first begin alike."""
        tensors = random_prompts("text", self.depth, self.n_ctx, towers.text_width, generator)
        bound = towers.text_width**-0.5
        shape = (towers.image_width, towers.text_width)
        maps = []
        for _ in range(min(self.depth, 2)):
            weight = torch.empty(shape).uniform_(-bound, bound, generator=generator)
            bias = torch.empty(shape[0]).uniform_(-bound, bound, generator=generator)
            maps.append((weight, bias))
        for block in range(self.depth):
            weight, bias = maps[min(block, 1)]
            tensors[f"projections.{block}.weight"] = weight.clone()
            tensors[f"projections.{block}.bias"] = bias.clone()
        return tensors

    def vectors(self, tensors: Mapping[str, Tensor]) -> PromptVectors:
        text = sequence(tensors, "text")
        image = [
            linear(vector, tensors[f"projections.{n}.weight"], tensors[f"projections.{n}.bias"])
            for n, vector in enumerate(text)
        ]
        return PromptVectors(image, text)
