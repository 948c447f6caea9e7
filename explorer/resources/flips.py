"""`flips`: which images of a class are classified otherwise once the class's latents are switched off."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.resources.images import row_activations
from patchsae.explorer.resources.latent import examples
from patchsae.explorer.resources.latents import class_id
from patchsae.explorer.view import View
from patchsae.storage.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_KS = (1, 2, 5, 10, 20, 50)
_LARGEST_K = 200
_IMAGES = 16


def flips(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """The first images of a class with the smallest k at which switching off its k latents changes the prediction.

    The latents of the class are those of masking, mode `off`: with the most tokens above tau in it, set to 0 on all
    tokens. As in the view's masking, what the SAE leaves of the activations is dropped, unless it is kept there. The
    prediction that changes is that with all latents on. Those that flip first come first. Without a classifier there are
    none, and `why` says so. Raises UserError for other ks than whole numbers, and as `predict` does.
    """
    import torch

    from patchsae.explorer import models
    from patchsae.pipeline.results.editing import switched_off

    view = library.view(arguments["view"])
    label = class_id(library, view, arguments["class"])
    ks = _ks(arguments.get("k", ""))
    try:
        zero_shot, sae = models.zero_shot(library, view), models.sae(library, view)
    except Absent as absent:
        # Stores without a classifier are usual, and their class pages are whole without this part.
        return {"ks": ks, "images": [], "why": str(absent)}
    layout, latents = models.activations(view).layout, _latents(view, label, ks[-1])
    masking = view.made_from("masking")
    error: Literal["kept", "dropped"] = (
        masking[-1].manifest.config.get("error", "dropped") if masking else "dropped"
    )
    names = library.class_names(view)

    @torch.inference_mode()
    def first_change(x: Tensor) -> tuple[int, int | None, int]:
        """The class of an image, the smallest k that changes it or None, and the class with that k."""
        steps = (
            int(zero_shot.logits(one).argmax()) for one in switched_off(sae, x, layout, latents, ks, error)
        )
        before = next(steps)
        return next(
            ((before, k, after) for k, after in zip(ks, steps, strict=True) if after != before),
            (before, None, 0),
        )

    found = []
    for one in examples(library, view, _rows(library, view, label)):
        x = row_activations(library, view, one["image"])
        before, first_k, after = models.computed(partial(first_change, x))
        told = {
            "predicted": names[before],
            "first_k": first_k,
            "to": None if first_k is None else names[after],
        }
        found.append({**one, **told})
    found.sort(key=lambda one: (one["first_k"] is None, one["first_k"] or 0))
    return {"ks": ks, "images": found, "why": None}


def _ks(text: str) -> list[int]:
    words = [word for word in text.split(",") if word]
    if not all(word.isascii() and word.isdecimal() and 0 < int(word[:9]) <= _LARGEST_K for word in words):
        raise UserError(f"k={text[:100]}: write whole numbers from 1 to {_LARGEST_K}, such as 1,5,20.")
    return sorted(set(map(int, words))) if words else list(_KS)


def _rows(library: Library, view: View, label: int) -> pl.DataFrame:
    """Row and label of the class's first images in the view's split, which are in a fixed random order."""
    images = library.images(view)
    of_split = (images["label"] == label) & (images["split"] == view.config["split"])
    return images.filter(of_split).head(_IMAGES).select("image", "label")


def _latents(view: View, label: int, k: int) -> list[int]:
    """The k latents with the most tokens above tau in a class; of ties the lower id comes first."""
    rows = view.statistics.scan("class_latents").filter(pl.col("class") == label)
    ranked = rows.select("latent", "n_tokens").collect().sort("n_tokens", "latent", descending=[True, False])
    latents: list[int] = ranked["latent"].head(k).to_list()
    return latents
