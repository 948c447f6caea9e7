"""Adapter `ivlp`: independent prompts in both towers of CLIP, the baseline of MaPLe and PromptSRC."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from patchsae.pipeline.adapters.prompts.independent import IndependentConfig


class IvlpConfig(IndependentConfig):
    """IVLP: deep prompts in both towers, independent of each other. The defaults are those of PromptSRC's code for it
    (`IVLP/vit_b16_c2_ep20_batch4_4+4ctx.yaml`)."""

    kind: Literal["ivlp"] = "ivlp"
    epochs: int = Field(20, ge=1)
    """How often all drawn images are seen (PromptSRC's code: `MAX_EPOCH: 20`)."""
