"""`maps`: where a latent is on the images that its page shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from patchsae.explorer.library import Library
from patchsae.explorer.pictures import row_of
from patchsae.explorer.resources.images import rounded, row_activations, selection_of
from patchsae.explorer.resources.views import layout
from patchsae.explorer.view import View
from patchsae.storage.errors import UserError

_MOST_IMAGES = 100


def maps(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """The latent's activation on every token of some images; without `images`, of those that its page shows."""
    import torch

    from patchsae.explorer import models
    from patchsae.pipeline.saes.single import one_latent

    view = library.view(arguments["view"])
    number = view.latent(arguments["latent"])
    if named := arguments.get("images", ""):
        words = named.split(",")
        if len(words) > _MOST_IMAGES:
            raise UserError(f"images: names {len(words)}; ask for at most {_MOST_IMAGES} at a time.")
        images = [row_of(library, view, word) for word in dict.fromkeys(words)]
    else:
        images = shown_images(view, number)
    found: dict[str, list[float]] = {}
    if images:
        sae = models.sae(library, view)
        tokens = models.activations(view).layout.select(selection_of(view))
        x = torch.cat([row_activations(library, view, image) for image in images])
        x = x[:, tokens.start : tokens.stop]
        values = models.computed(lambda: one_latent(sae, x.flatten(0, 1), number)).view(len(images), -1)
        found = {str(image): rounded(row) for image, row in zip(images, values.tolist(), strict=True)}
    largest = library.table(view.statistics, "latents")["max_activation"][number]
    return {"layout": layout(view), "max": largest, "maps": found}


def shown_images(view: View, latent: int) -> list[int]:
    """The images of a latent's page: its top images, and those of the gallery."""
    tables = [(view.statistics, "latent_images")]
    if view.gallery is not None:
        tables.append((view.gallery, "latent_examples"))
    images: list[int] = []
    for artifact, name in tables:
        if artifact.table_files(name):
            rows = artifact.scan(name).filter(pl.col("latent") == latent)
            images += rows.sort("rank").select("image").collect()["image"].to_list()
    return list(dict.fromkeys(images))
