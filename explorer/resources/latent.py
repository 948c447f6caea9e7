"""`latent`: everything about one latent but its maps and neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from patchsae.explorer.library import Library
from patchsae.explorer.resources.boxes import box
from patchsae.explorer.view import View

_CLASSES = 50
_SIBLINGS = 24


def latent(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """A latent's row, examples, histogram, classes, and the latents that fire with it."""
    view = library.view(arguments["view"])
    number = view.latent(arguments["latent"])
    table = library.table(view.statistics, "latents")
    top = (
        view.statistics.scan("latent_images")
        .filter(pl.col("latent") == number)
        .drop("latent")
        .sort("rank")
        .collect()
    )
    classes, n_classes = _classes(library, view, number)
    previous, following = _alive(table, number)
    return {
        "latent": number,
        "n_latents": view.n_latents,
        "row": table.row(number, named=True),
        "top": examples(library, view, top),
        **_gallery(library, view, number),
        "classes": classes,
        "n_classes": n_classes,
        "siblings": _siblings(library, view, number),
        "previous": previous,
        "next": following,
    }


def _gallery(library: Library, view: View, number: int) -> dict[str, Any]:
    """Examples from bands of quantiles, the histogram and the latents that fire on the same tokens."""
    gallery = view.gallery
    if gallery is None:
        return {"examples": [], "histogram": None, "cofiring": None}

    def of_latent(table: str) -> pl.DataFrame:
        rows = gallery.scan(table).filter(pl.col("latent") == number)
        return rows.drop("latent", "artifact").collect()

    bands = of_latent("latent_examples").sort("low", "rank", descending=[True, False])
    histogram = of_latent("latent_histograms").sort("low")
    cofiring = of_latent("cofiring").sort("rank").rename({"other": "latent"})
    return {
        "examples": [
            {
                "name": f"{100 * low:.3g} to {100 * high:.3g} %",
                "low": low,
                "high": high,
                "images": examples(library, view, rows.drop("low", "high")),
            }
            for (low, high), rows in bands.group_by("low", "high", maintain_order=True)
        ],
        "histogram": histogram.to_dict(as_series=False),
        "cofiring": cofiring.to_dicts(),
    }


def examples(library: Library, view: View, rows: pl.DataFrame) -> list[dict[str, Any]]:
    """EXAMPLE of every row, which has the columns `image` and `label`, and those that a page shows besides."""
    names = library.class_names(view)
    found = rows.drop("artifact", "latent", strict=False).to_dicts()
    shown = {}
    if view.images is not None:
        images = library.images(view)
        chosen = [one["image"] for one in found]
        for one in images[chosen].iter_rows(named=True) if chosen else ():
            shown[one["image"]] = one
    for one in found:
        image = shown.get(one["image"], {})
        width, height = image.get("width"), image.get("height")
        one |= {
            "class_name": names[one["label"]] if one["label"] < len(names) else None,
            "source": image.get("source"),
            "width": width,
            "height": height,
            "box": box(library, view, width, height),
        }
    return found


def _classes(library: Library, view: View, number: int) -> tuple[list[dict[str, Any]], int]:
    """The 50 classes with the most images that fire the latent, and the number of all."""
    found = (
        view.statistics.scan("class_latents")
        .filter(pl.col("latent") == number)
        .select("class", "n_images", "n_tokens", "mean_activation")
        .collect()
    )
    names, sizes = library.class_names(view), class_sizes(library, view)
    rows = found.sort("n_images", "class", descending=[True, False]).head(_CLASSES).to_dicts()
    for row in rows:
        label = row["class"]
        row["name"] = names[label] if label < len(names) else None
        row["share"] = row["n_images"] / sizes[label] if label < len(sizes) and sizes[label] else None
    return rows, len(found)


def class_sizes(library: Library, view: View) -> np.ndarray:
    """The number of images of each class in the split; an image of several classes counts in each."""
    if view.images is None:
        return np.zeros(0, np.int64)
    return np.bincount(of_split(library, view)["label"].to_numpy(), minlength=view.n_classes or 0)


def of_split(library: Library, view: View) -> pl.DataFrame:
    """The columns `image` and `label` of the split that the statistics count, a row for each class of an image."""
    images = library.images(view).filter(pl.col("split") == view.config["split"]).select("image", "label")
    if view.images is None or not view.images.table_files("image_labels"):
        return images
    labels = library.table(view.images, "image_labels", ("image", "label"))
    return images.select("image").join(labels, on="image", maintain_order="left_right")


def _alive(table: pl.DataFrame, number: int) -> tuple[int | None, int | None]:
    """The nearest latents before and after this one that fire on an image."""
    alive = np.flatnonzero(~table["dead"].to_numpy())
    before, after = alive[alive < number], alive[alive > number]
    return (int(before[-1]) if len(before) else None, int(after[0]) if len(after) else None)


def _siblings(library: Library, view: View, number: int) -> list[dict[str, Any]]:
    """The same latent under other backbones and on other images: those of the same images first, at most 24."""
    heads = {one["key"]: one for one in library.heads()}
    images = view.statistics.manifest.inputs["images"]
    others = [one for one in library.views() if one.sae_key == view.sae_key and one.key != view.key]
    others.sort(key=lambda one: one.statistics.manifest.inputs["images"] != images)
    found = []
    for other in others[:_SIBLINGS]:
        row = library.table(other.statistics, "latents").row(number, named=True)
        about = {name: heads[other.key][name] for name in ("label", "backbone", "dataset")}
        found.append({"view": other.key, **about, "row": row})
    return found
