"""`classes` and `class`: a class with its latents, its images, and what masking does to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from patchsae.explorer.library import Library
from patchsae.explorer.resources.latent import class_sizes, examples, of_split
from patchsae.explorer.resources.latents import class_id
from patchsae.explorer.resources.masking import curves_of
from patchsae.explorer.view import View

_LATENTS, _IMAGES = 200, 60


def classes(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """The classes of a view's dataset."""
    view = library.view(arguments["view"])
    if view.images is None:
        return {"classes": []}
    rows = library.table(view.images, "classes").select(
        pl.col("class").alias("id"), pl.col("class_name").alias("name"), "n_images"
    )
    return {"classes": rows.to_dicts()}


def one_class(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """A class: the latents that most of its images fire, images of it, and curves of masking."""
    view = library.view(arguments["view"])
    label = class_id(library, view, arguments["class"])
    names, sizes = library.class_names(view), class_sizes(library, view)
    n_images = int(sizes[label]) if label < len(sizes) else None
    return {
        "class": label,
        "name": names[label] if label < len(names) else None,
        "n_images": n_images,
        "latents": _latents(library, view, label, n_images),
        "images": _images(library, view, label),
        "masking": [curves_of(library, view, artifact, label) for artifact in view.made_from("masking")],
    }


def _latents(library: Library, view: View, label: int, n_images: int | None) -> list[dict[str, Any]]:
    frequency = library.table(view.statistics, "latents").select("latent", "frequency")
    rows = (
        view.statistics.scan("class_latents")
        .filter(pl.col("class") == label)
        .select("latent", "n_images", "n_tokens", "mean_activation")
        .collect()
        .sort("n_tokens", "latent", descending=[True, False])
        .head(_LATENTS)
        .join(frequency, on="latent", how="left", maintain_order="left")
    )
    share = pl.col("n_images") / n_images if n_images else pl.lit(None, pl.Float64)
    return rows.with_columns(share=share).to_dicts()


def _images(library: Library, view: View, label: int) -> list[dict[str, Any]]:
    if view.images is None:
        return []
    rows = of_split(library, view).filter(pl.col("label") == label).head(_IMAGES)
    return examples(library, view, rows)
