"""`IndependentConfig`: prompts in both towers, independent of each other, as IVLP and PromptSRC have them."""

from __future__ import annotations

from pydantic import Field

from patchsae.pipeline.adapters.prompts.dassl import Names
from patchsae.pipeline.adapters.prompts.method import PromptConfig
from patchsae.pipeline.adapters.prompts.vectors import Size


class IndependentConfig(PromptConfig):
    """The prompts of IVLP and PromptSRC. A subclass adds `kind` and how they are trained."""

    n_ctx_image: int = Field(4, ge=1)
    """Prompt tokens in the image tower (PromptSRC's code: `N_CTX_VISION: 4`)."""
    n_ctx_text: int = Field(4, ge=1)
    """Prompt tokens in the text tower (PromptSRC's code: `N_CTX_TEXT: 4`)."""
    depth_image: int = Field(9, ge=1)
    """Blocks of the image tower that get prompts of their own (PromptSRC's code: `PROMPT_DEPTH_VISION: 9`)."""
    depth_text: int = Field(9, ge=1)
    """Blocks of the text tower that get prompts of their own (PromptSRC's code: `PROMPT_DEPTH_TEXT: 9`)."""
    context: str | None = "a photo of a"
    """The words that class prompts begin with, of which the first `n_ctx_text` are learned (PromptSRC's code:
    `CTX_INIT`). If null, the learned ones begin at random, and there are no others."""
    lr: float = Field(0.0025, gt=0)
    """The learning rate (PromptSRC's code: `LR: 0.0025`)."""

    names = Names(
        "IVLP or PromptSRC",
        (
            (r"prompt_learner\.ctx", "text.0", 0),
            (r"image_encoder\.VPT", "image.0", 0),
            (r"(image|text)_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow", "{0}.{1}", 0),
        ),
    )

    def image_prompts(self) -> Size:
        return Size(self.n_ctx_image, self.depth_image, "n_ctx_image", "depth_image")

    def text_prompts(self) -> Size:
        return Size(self.n_ctx_text, self.depth_text, "n_ctx_text", "depth_text")

    def words(self) -> str | None:
        return self.context
