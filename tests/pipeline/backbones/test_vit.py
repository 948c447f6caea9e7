"""Variants of open_clip's own tower: the cut is exact for CLIPA's pooling and for CoCa's."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch

from patchsae.pipeline.backbones.backbone import ExtractConfig
from patchsae.pipeline.backbones.towers.make import make_model
from patchsae.pipeline.backbones.towers.vit import ClipVit

TEXT = {"context_length": 76, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "clipa": {"vision": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}},
    "scaled layers": {"vision": {"ls_init_value": 0.5}},
    "coca": {
        "vision": {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text": {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
        "custom_text": True,
    },
}


@pytest.mark.parametrize("block", [-1, 0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_tail_of_head_is_the_model(variant: str, block: int) -> None:
    settings = dict(VARIANTS[variant])
    vision = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
    architecture = {
        "embed_dim": 16, "vision_cfg": vision | settings.pop("vision"), "text_cfg": TEXT | settings.pop("text", {}),
    }  # fmt: skip
    torch.manual_seed(0)
    model = make_model(architecture | settings)
    tokenizer = open_clip.SimpleTokenizer(context_length=76)
    cut = ClipVit(model, torch.nn.Identity(), tokenizer, ExtractConfig(hook_block=block), variant, {})
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        whole = model.encode_image(images, normalize=False)
        torch.testing.assert_close(cut.tail(cut.head(images)), whole, rtol=1e-5, atol=1e-6)
        embeddings = cut.class_embeddings(["circle", "square"], ["a photo of a {}."], True)
    assert embeddings.shape == (2, 16) and not torch.equal(embeddings[0], embeddings[1])
