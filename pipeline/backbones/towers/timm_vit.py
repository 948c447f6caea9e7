"""`TimmVit`: a CLIP of open_clip whose image tower is a vision transformer of timm, cut at the hook.

SigLIP, SigLIP 2, EVA, PE-Core, ViTamin and some MobileCLIPs have such towers. Unlike open_clip's own, they may
have no class token, and pool the patches by attention.

Shapes: B images, T tokens, d channels at the hook, E embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from patchsae.pipeline.backbones.towers.clip import CutClip, cannot_cut
from patchsae.storage.errors import UserError
from patchsae.storage.tokens import TokenLayout


class TimmVit(CutClip):
    """Implements `Backbone`. The kind `open_clip` builds it."""

    @staticmethod
    def layout_of(visual: Any, name: str) -> TokenLayout:
        """The tokens of an image. Raises UserError if the tower cannot be cut, or takes images of another size."""
        trunk, image_size = visual.trunk, tuple(visual.image_size)
        is_vit = isinstance(trunk, VisionTransformer | Eva | VisionTransformerRelPos)
        if not is_vit or getattr(trunk, "rope_mixed", False):
            raise cannot_cut(name, f"{type(trunk).__name__} of timm")
        embed = trunk.patch_embed
        if embed.strict_img_size and tuple(embed.img_size) != image_size:
            raise UserError(
                f"backbone {name}: open_clip gives its image tower images of {image_size[0]} pixels, and the tower "
                f"takes {embed.img_size[0]}; choose another of these models."
            )
        rows, columns = embed.dynamic_feat_size(image_size)
        return TokenLayout(trunk.num_prefix_tokens, (rows, columns))

    @staticmethod
    def blocks_of(visual: Any) -> tuple[list[nn.Module], int]:
        """The blocks of the tower, and its width."""
        return list(visual.trunk.blocks), visual.trunk.embed_dim

    @property
    def trunk(self) -> Any:
        """timm's model, which open_clip's `visual` holds."""
        return self.visual.trunk

    def head(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> float32 [B, T, d]. The blocks after the hook are not run."""
        found = self.trunk.forward_intermediates(
            images.to(self.device, self.dtype),
            indices=[self.hook_block],
            return_prefix_tokens=self.layout.n_prefix > 0,
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
        )[0]
        if self.layout.n_prefix:
            patches, prefix = found
            found = torch.cat([prefix, patches], dim=1)
        tokens: Tensor = found.float()
        return tokens

    def tail(self, activations: Tensor) -> Tensor:
        """float32 [B, T, d] -> float32 [B, E]."""
        x = activations.to(self.device, self.dtype)
        shared = self._shared_by_blocks()
        for block in self.blocks[self.hook_block + 1 :]:
            x = block(x, **shared)
        features: Tensor = self.visual.head(self.trunk.forward_head(self.trunk.norm(x)))
        return features.float()

    def _shared_by_blocks(self) -> dict[str, Any]:
        """What the tower computes once and gives to each of its blocks."""
        if isinstance(self.trunk, Eva):
            rope: Any = self.trunk.rope
            return {"rope": None if rope is None else rope.get_embed(shape=self.layout.grid)}
        if isinstance(self.trunk, VisionTransformerRelPos):
            bias: Any = self.trunk.shared_rel_pos
            return {"shared_rel_pos": None if bias is None else bias.get_bias()}
        return {}
