"""`ClipVit`: a CLIP of open_clip whose image tower is open_clip's own VisionTransformer, cut at the hook.

Shapes: B images, T tokens, d channels at the hook, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from patchsae.pipeline.backbones.towers.blocks import class_token_of, is_plain, run_block
from patchsae.pipeline.backbones.towers.clip import CutClip, cannot_cut
from patchsae.storage.tokens import TokenLayout

Before = Callable[[int, Tensor], Tensor]


class ClipVit(CutClip):
    """Implements `Backbone`. The kinds `open_clip` and `shapes_clip` build it."""

    @staticmethod
    def layout_of(visual: Any, name: str) -> TokenLayout:
        """The tokens of an image. Raises UserError if the tower cannot be cut."""
        if not isinstance(visual, VisionTransformer) or not visual.transformer.batch_first:
            raise cannot_cut(name, type(visual).__name__)
        rows, columns = visual.grid_size
        return TokenLayout(visual.positional_embedding.shape[0] - rows * columns, (rows, columns))

    @staticmethod
    def blocks_of(visual: VisionTransformer) -> tuple[list[nn.Module], int]:
        """The blocks of the tower, and its width."""
        return list(visual.transformer.resblocks), visual.positional_embedding.shape[1]

    def head(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> float32 [B, T, d]. The blocks after the hook are not run."""
        x = self.tokens(images)
        for block in self.blocks[: self.hook_block + 1]:
            x = run_block(block, x)
        return x.float()

    def tail(self, activations: Tensor) -> Tensor:
        """float32 [B, T, d] -> float32 [B, E]."""
        return self.features(activations.to(self.device, self.dtype), self.hook_block + 1)

    def tokens(self, images: Tensor) -> Tensor:
        """[B, 3, h, w] -> the input of the first block: [B, T, d]."""
        x: Tensor = self.visual._embeds(images.to(self.device, self.dtype))
        return x

    def features(self, x: Tensor, first: int, before: Before | None = None) -> Tensor:
        """The input of block `first` [B, T, d] -> image features, float32 [B, E].

        `before(n, x)`, if given, replaces the input x of each block n. It may add tokens behind those of the
        image, which are left out where the tower pools tokens. If the tower's output is that of the class token,
        the last block is computed for the class token alone.
        """
        last = self.n_blocks - 1
        is_cut = self._pools_class_token() and is_plain(self.blocks[last])
        for n in range(first, self.n_blocks):
            if before is not None:
                x = before(n, x)
            block = self.blocks[n]
            x = class_token_of(block, x) if is_cut and n == last else run_block(block, x)
        pooled, _ = self.visual._pool(x[:, : self.layout.n_tokens])
        if self.visual.proj is not None:
            pooled = pooled @ self.visual.proj
        return pooled.float()

    def _pools_class_token(self) -> bool:
        return self.visual.attn_pool is None and self.visual.pool_type == "tok"
