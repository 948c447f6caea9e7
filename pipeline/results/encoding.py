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
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.sparse.latents import places, tokens_per_block
from patchsae.storage.activations import Activations
from patchsae.storage.errors import UserError
from patchsae.storage.tokens import TokenLayout, TokenSelection

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


@torch.inference_mode()
def dense_latent_rows(sae: Sae, x: Tensor, n_tokens: int) -> pl.DataFrame:
    """`latent_rows` of the first `n_tokens` tokens of one image x [T, d], without the column `image`.

    It needs no memory beside the SAE, while a `LatentEncoder` holds its own copies of W_enc.
    """
    tokens, latents, values = [], [], []
    for start in range(0, n_tokens, step := tokens_per_block(sae.n_latents)):
        f = sae.encode(x[start : min(start + step, n_tokens)])
        token, latent = np.divmod(places(f > 0).numpy(), sae.n_latents)
        tokens.append(start + token)
        latents.append(latent)
        values.append(f.numpy()[token, latent])
    return pl.DataFrame(
        {
            "token": np.concatenate(tokens).astype(np.int32),
            "latent": np.concatenate(latents).astype(np.int32),
            "activation": np.concatenate(values),
        }
    )


def strongest(
    rows: pl.DataFrame, layout: TokenLayout, k: int, tokens: TokenSelection = "all"
) -> pl.DataFrame:
    """The k latents of each image of `latent_rows` with the largest mean over `tokens`, strongest first.

    Columns: image, latent, activation (mean over tokens), token (the first one with the largest activation) and
    token_activation.
    """
    chosen = layout.select(tokens)
    of_tokens = pl.col("token").is_between(chosen.start, chosen.stop - 1)
    by_latent = (
        rows.filter(of_tokens)
        .group_by("image", "latent")
        .agg(
            activation=pl.col("activation").sum() / len(chosen),
            token=pl.col("token").get(pl.col("activation").arg_max()),
            token_activation=pl.col("activation").max(),
        )
    )
    ranked = by_latent.sort("activation", "latent", descending=[True, False])
    return ranked.group_by("image", maintain_order=True).head(k).sort("image", maintain_order=True)


def patch_map(rows: pl.DataFrame, layout: TokenLayout) -> np.ndarray:
    """One latent's rows on one image -> its activation on every patch: float32 [rows, columns]."""
    patches = layout.select("patches")
    values = np.zeros(layout.n_tokens, np.float32)
    values[rows["token"].to_numpy()] = rows["activation"].to_numpy()
    return values[patches.start : patches.stop].reshape(layout.grid)
