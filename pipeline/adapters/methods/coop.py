"""Adapter `coop`: context optimisation (Zhou et al. 2022, arXiv 2109.01134)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from patchsae.pipeline.adapters.prompts.dassl import Names
from patchsae.pipeline.adapters.prompts.method import PromptConfig
from patchsae.pipeline.adapters.prompts.vectors import Size


class CoopConfig(PromptConfig):
    """CoOp: the words before the class name are learned, and the image tower is left as it is. One context for all
    classes, with the class name behind it. The defaults are those of its code (`vit_b16.yaml` and `main.sh`) for 16
    shots; it takes 100 epochs for 2 and 4 shots, and 50 for 1 shot and for ImageNet."""

    kind: Literal["coop"] = "coop"
    n_ctx: int = Field(16, ge=1)
    """Learned tokens before the class name (CoOp's code: `N_CTX: 16`)."""
    context: str | None = None
    """The words that they begin as, such as `a photo of a` with `n_ctx: 4`. They begin at random if it is not given,
    as in CoOp's code."""
    lr: float = Field(0.002, gt=0)
    """The learning rate (CoOp's code: `LR: 0.002`)."""
    epochs: int = Field(200, ge=1)
    """How often all drawn images are seen (CoOp's code: `MAX_EPOCH: 200`)."""
    batch_size: int = Field(32, ge=1)
    """Images per step (CoOp's code: `BATCH_SIZE: 32`)."""

    adapts_images: ClassVar[bool] = False
    names = Names("CoOp", ((r"(?:prompt_learner\.)?ctx", "text.0", 0),))

    def text_prompts(self) -> Size:
        return Size(self.n_ctx, 1)

    def words(self) -> str | None:
        return self.context
