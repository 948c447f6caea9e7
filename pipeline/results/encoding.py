"""The latents of images as rows: of own images, which the backbone is run on, and of cached ones.

Shapes: B images, T tokens per image, d channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch
from torch import Tensor

from patchsae.pipeline.activations.parts import PartImages
from patchsae.pipeline.backbones.backbone import Backbone
from patchsae.pipeline.saes.encode import LatentEncoder
from patchsae.storage.activations import Activations
from patchsae.storage.errors import UserError
from patchsae.storage.tokens import TokenLayout

IMAGES_PER_BATCH = 16


def own_activations(backbone: Backbone, pixels: Sequence[Tensor]) -> Tensor:
    """B preprocessed images -> their activations at the hook: float32 [B, T, d].

    Callers keep B to `IMAGES_PER_BATCH`.
    """
    with torch.inference_mode():
        return backbone.head(torch.stack(list(pixels)))


def cached_activations(activations: Activations, image: int) -> Tensor:
    """The activations of one row: float32 [1, T, d].

    Raises UserError if there is no such row, or if its shard is damaged, was never written, or holds values that
    are not finite.
    """
    if not 0 <= image < activations.n_images:
        raise UserError(f"image {image}: the dataset has the rows 0 to {activations.n_images - 1}.")
    rows = np.array([image])
    return PartImages(activations, rows, "cpu").take(rows)


def latent_rows(
    encoder: LatentEncoder, x: Tensor, names: Sequence[str | int], layout: TokenLayout
) -> pl.DataFrame:
    """The latents above 0 of x [B, T, d], a row each: image (its entry of `names`), token, latent, activation.

    Learned prompt tokens have no rows.
    """
    n_tokens = len(layout.select("all"))
    latents = encoder(x[:, :n_tokens].flatten(0, 1))
    image, token = np.divmod(latents.token().numpy(), n_tokens)
    return pl.DataFrame(
        {
            "image": pl.Series(names)[image],
            "token": token.astype(np.int32),
            "latent": latents.latent.numpy(),
            "activation": latents.value.numpy(),
        }
    )


def strongest(rows: pl.DataFrame, layout: TokenLayout, k: int) -> pl.DataFrame:
    """The k latents of each image of `latent_rows` with the largest token mean, strongest first.

    Columns: image, latent, activation (mean over tokens), token (the first one with the largest activation) and
    token_activation.
    """
    by_latent = rows.group_by("image", "latent").agg(
        activation=pl.col("activation").sum() / len(layout.select("all")),
        token=pl.col("token").get(pl.col("activation").arg_max()),
        token_activation=pl.col("activation").max(),
    )
    ranked = by_latent.sort("activation", "latent", descending=[True, False])
    return ranked.group_by("image", maintain_order=True).head(k).sort("image", maintain_order=True)


def patch_map(rows: pl.DataFrame, layout: TokenLayout) -> np.ndarray:
    """One latent's rows on one image -> its activation on every patch: float32 [rows, columns]."""
    patches = layout.select("patches")
    values = np.zeros(layout.n_tokens, np.float32)
    values[rows["token"].to_numpy()] = rows["activation"].to_numpy()
    return values[patches.start : patches.stop].reshape(layout.grid)
