"""What a backbone predicts when latents are set to other values: only its tail is run.

With f_s the value of latent s on a token and v_s the one it is set to, the token's activation becomes
x + sum_s (v_s - f_s) W_dec[s]. With `dropped`, what the SAE leaves of the activation is taken out as well, as in the
evaluation `masking`: then x is replaced by its reconstruction first.

Shapes: B images, T tokens, R of them that the SAE reads, d channels, C classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.saes.single import one_latent
from patchsae.pipeline.saes.sparse.latents import tokens_per_block
from patchsae.storage.errors import UserError
from patchsae.storage.tokens import TokenLayout

ErrorOfSae = Literal["kept", "dropped"]


@dataclass(frozen=True)
class Edit:
    """Sets `latent` to `value` on some tokens of the image, given by their positions, or on all of them."""

    latent: int
    value: float
    tokens: tuple[int, ...] | None = None


def check(edits: Sequence[Edit], sae: Sae, n_tokens: int) -> None:
    """Raises UserError if an edit is of a latent or a token that there is not, or of a value that is no number."""
    for edit in edits:
        if not 0 <= edit.latent < sae.n_latents:
            raise UserError(f"latent {edit.latent}: this SAE has the latents 0 to {sae.n_latents - 1:,}.")
        if not torch.isfinite(torch.tensor(edit.value)):
            raise UserError(f"latent {edit.latent}: cannot be set to {edit.value}; give a number.")
        for token in edit.tokens or ():
            if not 0 <= token < n_tokens:
                raise UserError(f"token {token}: an image has the tokens 0 to {n_tokens - 1}.")


@torch.inference_mode()
def edited(
    sae: Sae, x: Tensor, layout: TokenLayout, edits: Sequence[Edit], error: ErrorOfSae = "kept"
) -> Tensor:
    """The activations [B, T, d] of images under the same edits, of which the last on a token counts.

    Learned prompt tokens stay as they are.
    """
    n_tokens = len(layout.select("all"))
    check(edits, sae, n_tokens)
    read = x[:, :n_tokens].flatten(0, 1)
    changed = x.clone()
    new = changed[:, :n_tokens]
    if error == "dropped":
        new.copy_(_reconstructed(sae, read).view_as(new))
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}
    for edit in edits:
        if edit.latent not in before:
            before[edit.latent] = one_latent(sae, read, edit.latent).view(len(x), n_tokens)
            after[edit.latent] = before[edit.latent].clone()
        of = slice(None) if edit.tokens is None else list(edit.tokens)
        after[edit.latent][:, of] = edit.value
    for latent, value in after.items():
        new += (value - before[latent])[..., None] * sae.W_dec[latent]
    return changed


@torch.inference_mode()
def switched_off(
    sae: Sae, x: Tensor, layout: TokenLayout, latents: Sequence[int], ks: Sequence[int], error: ErrorOfSae
) -> Iterator[Tensor]:
    """The activations [1, T, d] of an image with none, and then with the first k of `latents`, set to 0 everywhere.

    k are the ascending `ks`. It is `edited` step by step: each latent is decoded once.
    """
    n_tokens = len(layout.select("all"))
    changed, W_dec = x.clone(), sae.W_dec[list(latents)]
    new, blocks = changed[0, :n_tokens], x[0, :n_tokens].split(tokens_per_block(sae.n_latents))
    f = torch.empty(n_tokens, len(latents))
    for rows, block in zip(torch.arange(n_tokens).split(len(blocks[0])), blocks, strict=True):
        whole = sae.encode(block)
        f[rows] = whole[:, list(latents)]
        if error == "dropped":
            new[rows] = torch.addmm(sae.b_dec, whole, sae.W_dec)
    yield changed
    for first, last in itertools.pairwise([0, *ks]):
        new -= f[:, first:last] @ W_dec[first:last]
        yield changed


def _reconstructed(sae: Sae, x: Tensor) -> Tensor:
    """x_hat = f W_dec + b_dec of tokens [n, d], some at a time."""
    blocks = x.split(tokens_per_block(sae.n_latents))
    return torch.cat([torch.addmm(sae.b_dec, sae.encode(block), sae.W_dec) for block in blocks])
