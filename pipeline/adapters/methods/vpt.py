"""Adapter `vpt`: deep visual prompts (Jia et al. 2022, arXiv 2203.12119) in CLIP's image tower."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from patchsae.pipeline.adapters.prompts.dassl import Names
from patchsae.pipeline.adapters.prompts.method import PromptConfig
from patchsae.pipeline.adapters.prompts.vectors import Size


class VptConfig(PromptConfig):
    """Deep VPT: prompts in the blocks of the image tower, with the classes' zero-shot prompts. The defaults are those
    of MaPLe's code for it (`VPT/vit_b16_c2_ep5_batch4_4.yaml`)."""

    kind: Literal["vpt"] = "vpt"
    n_ctx: int = Field(8, ge=1)
    """Prompt tokens (MaPLe's code: `N_CTX_VISION: 8`)."""
    depth: int = Field(12, ge=1)
    """Blocks that get prompts of their own (MaPLe's code: `PROMPT_DEPTH_VISION: 12`)."""
    lr: float = Field(0.0025, gt=0)
    """The learning rate (MaPLe's code: `LR: 0.0025`)."""
    epochs: int = Field(5, ge=1)
    """How often all drawn images are seen (MaPLe's code: `MAX_EPOCH: 5`)."""

    names = Names(
        "VPT",
        (
            (r"image_encoder\.VPT", "image.0", 0),
            (r"image_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow", "image.{0}", 0),
        ),
    )

    def image_prompts(self) -> Size:
        return Size(self.n_ctx, self.depth)
