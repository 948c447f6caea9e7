"""`neighbours`: latents with similar decoder rows; and the search for latents by words, through the text tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.view import View

_NEIGHBOURS = 20
_LONGEST = 300


def neighbours(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """The latents whose rows of W_dec have the largest cosines with that of a latent."""
    import torch

    from patchsae.explorer import models
    from patchsae.pipeline.saes.sae import map_sae

    view = library.view(arguments["view"])
    number = view.latent(arguments["latent"])
    # Mapped for this alone: all of W_dec is read, and nothing of it stays in memory.
    sae = map_sae(models.sae_of(view))

    @torch.inference_mode()
    def nearest() -> tuple[list[int], list[float]]:
        norms = torch.linalg.vector_norm(sae.W_dec, dim=1).clamp_min(1e-12)
        cosines = sae.W_dec @ (sae.W_dec[number] / norms[number]) / norms
        cosines[number] = -torch.inf
        found = cosines.topk(min(_NEIGHBOURS, sae.n_latents - 1))
        return found.indices.tolist(), found.values.tolist()

    dead = library.table(view.statistics, "latents")["dead"]
    return {
        "neighbours": [
            {"latent": latent, "cosine": cosine, "dead": bool(dead[latent])}
            for latent, cosine in zip(*models.computed(nearest), strict=True)
        ]
    }


def has_words(view: View) -> bool:
    """Whether latents can be searched by words: a gallery says where they lie in the space of the text tower."""
    from patchsae.pipeline.evaluations.gallery.embeddings import FILE

    gallery = view.gallery
    return gallery is not None and FILE in {output.path for output in gallery.manifest.outputs}


def word_scores(library: Library, view: View, words: str) -> np.ndarray:
    """How near each latent is to the words: float32 [S], NaN for a latent of which the gallery embedded no image.

    `pipeline.evaluations.gallery.embeddings` says what they are. Only the order of the scores says something: their
    size depends on the model. Raises Absent without a gallery, and UserError for words that the text tower cannot read.
    """
    import torch
    from torch.nn.functional import normalize

    from patchsae.explorer import models
    from patchsae.pipeline.evaluations.gallery.embeddings import NEUTRAL, PHRASES, Embeddings

    if not has_words(view):
        raise Absent(
            "words: no gallery of this view embedded images, with which latents are compared; add an evaluation of "
            "kind `gallery` and run it."
        )
    assert view.gallery is not None
    gallery = view.gallery
    embeddings = library.cache.get(
        ("embeddings", gallery.manifest.digest),
        lambda: Embeddings.read(gallery),
        lambda one: 0 if one is None else one.embedding.nbytes,
    )
    assert embeddings is not None
    backbone = models.text_tower(library, view)

    @torch.inference_mode()
    def score() -> np.ndarray:
        # Not by `format`, since the words may hold braces.
        phrases = [phrase.replace("{}", words[:_LONGEST]) for phrase in PHRASES]
        features = normalize(backbone.encode_text([*phrases, *NEUTRAL]), dim=-1)
        of_words, neutral = (
            some.mean(dim=0).numpy() for some in features.split([len(PHRASES), len(NEUTRAL)])
        )
        return embeddings.scores(of_words, neutral)

    return models.computed(score)
