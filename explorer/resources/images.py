"""`image`, `codes`, `upload`: an image of the dataset, or an own one, with its strongest latents and its prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import polars as pl

from patchsae.explorer import sources
from patchsae.explorer.library import Library
from patchsae.explorer.pictures import row_of
from patchsae.explorer.resources.boxes import box
from patchsae.explorer.resources.views import layout
from patchsae.explorer.truth import knows_truth
from patchsae.explorer.view import View
from patchsae.storage.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_LATENTS = 50
_MOST_CODES = 60_000


def image(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """A row of the dataset. What cannot be computed is left out, and `problem` says why."""
    view = library.view(arguments["view"])
    row = row_of(library, view, arguments["row"])
    found = library.images(view).row(row, named=True)
    names = library.class_names(view)
    about = {
        "image": row,
        "upload": None,
        "source": found["source"],
        "label": found["label"],
        "class_name": names[found["label"]] if found["label"] < len(names) else None,
        "classes": _classes(library, view, row, found["label"], names),
        "split": found["split"],
        "attributes": _attributes(library, view, row),
        "truth": knows_truth(library, view),
    }
    return about | _shown(
        library, view, found["width"], found["height"], lambda: row_activations(library, view, row)
    )


def codes(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """The latents above 0 of a row of the dataset, token by token."""
    view = library.view(arguments["view"])
    return _codes(library, view, row_activations(library, view, row_of(library, view, arguments["row"])))


def upload(library: Library, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps an own image. Raises UserError if it is none, or too large."""
    library.view(arguments["view"])
    return {"id": library.uploads.add(arguments["body"])}


def uploaded(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """An own image, as `image`. Raises Absent if it is not kept any more."""
    view, name = library.view(arguments["view"]), arguments["upload"]
    width, height = library.uploads.image(name, reading_of(view)).size
    about: dict[str, Any] = {
        "image": None,
        "upload": name,
        "source": None,
        "label": None,
        "class_name": None,
        "classes": [],
        "split": None,
        "attributes": [],
        "truth": False,
    }
    return about | _shown(library, view, width, height, lambda: upload_activations(library, view, name))


def upload_codes(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """The latents above 0 of an own image, as `codes`."""
    view = library.view(arguments["view"])
    return _codes(library, view, upload_activations(library, view, arguments["upload"]))


def reading_of(view: View) -> Any:
    """How image files are turned and put on a background, as those of the view's dataset are."""
    return sources.recorded(view).reading


def row_activations(library: Library, view: View, row: int) -> Tensor:
    """The cached activations of a row: float32 [1, T, d]. Raises Absent or Damaged."""
    from patchsae.explorer import models
    from patchsae.pipeline.results.encoding import cached_activations

    activations = models.activations(view)
    if library.mode != "report":
        return cached_activations(activations, row)
    # The maps of a report ask for the same images again and again, latent by latent.
    key = ("activations", view.statistics.manifest.inputs["activations"], row)
    return library.cache.get(key, lambda: cached_activations(activations, row), lambda x: x.numel() * 4)


def upload_activations(library: Library, view: View, name: str) -> Tensor:
    """The activations of an own image under the view's backbone, float32 [1, T, d], kept in memory."""
    from patchsae.explorer import models
    from patchsae.pipeline.results.encoding import own_activations

    reading = reading_of(view)
    opened, backbone = library.uploads.image(name, reading), models.backbone(library, view)

    def encode() -> Tensor:
        return models.computed(lambda: own_activations(backbone, [backbone.preprocess(opened)]))

    weights = view.activations.manifest.inputs["weights"] if view.activations else ""
    key = ("upload", name, reading, weights, backbone.hook_block)
    return library.cache.get(key, encode, lambda x: x.numel() * 4)


def selection_of(view: View) -> Any:
    """The tokens that the view's latents are told of: those of the image, and prompts if they were counted."""
    return "with_prompts" if view.config.get("tokens") == "with_prompts" else "all"


def _latent_rows(library: Library, view: View, x: Tensor) -> pl.DataFrame:
    """Token, latent and activation of every latent above 0."""
    from patchsae.explorer import models
    from patchsae.pipeline.results.encoding import dense_latent_rows

    sae = models.sae(library, view)
    n_tokens = len(models.activations(view).layout.select(selection_of(view)))
    return models.computed(lambda: dense_latent_rows(sae, x[0], n_tokens))


def _codes(library: Library, view: View, x: Tensor) -> dict[str, Any]:
    from patchsae.explorer import models

    rows = _latent_rows(library, view, x)
    kept = (
        rows.top_k(_MOST_CODES, by="activation").sort("token", "latent") if len(rows) > _MOST_CODES else rows
    )
    return {
        "n_tokens": len(models.activations(view).layout.select(selection_of(view))),
        "tokens": kept["token"].to_list(),
        "latents": kept["latent"].to_list(),
        "values": rounded(kept["activation"]),
        "n_left_out": len(rows) - len(kept),
    }


def rounded(values: Any) -> list[float]:
    """float32 as numbers of six digits, which JSON writes short."""
    return [float(f"{value:.6g}") for value in values]


def _shown(
    library: Library, view: View, width: int, height: int, activations: Callable[[], Tensor]
) -> dict[str, Any]:
    """What an image of the dataset and an own one share."""
    found: dict[str, Any] = {
        "width": width,
        "height": height,
        "box": box(library, view, width, height),
        "layout": layout(view),
        "prediction": [],
        "prediction_why": None,
        "latents": [],
        "problem": None,
    }
    try:
        x = activations()
        found["latents"] = _strongest(library, view, x)
    except UserError as error:
        return found | {"problem": str(error), "prediction_why": str(error)}
    try:
        from patchsae.explorer.resources.predict import predicted

        found["prediction"] = predicted(library, view, x)
    except UserError as error:
        found["prediction_why"] = str(error)
    return found


def _strongest(library: Library, view: View, x: Tensor) -> list[dict[str, Any]]:
    from patchsae.explorer import models
    from patchsae.pipeline.results.encoding import strongest

    rows = _latent_rows(library, view, x).with_columns(image=pl.lit(0))
    counted = view.config.get("tokens", "all")
    top = strongest(rows, models.activations(view).layout, _LATENTS, counted).drop("image")
    bits = library.table(view.statistics, "latents").select("latent", "frequency", "label_entropy")
    return top.join(bits, on="latent", how="left", maintain_order="left").to_dicts()


def _classes(library: Library, view: View, row: int, label: int, names: list[str]) -> list[dict[str, Any]]:
    """The classes of an image: its label, or all of an image of several."""
    labels = [label]
    if view.images is not None and view.images.table_files("image_labels"):
        of_image = library.table(view.images, "image_labels").filter(pl.col("image") == row)
        labels = of_image["label"].to_list() or labels
    return [{"id": one, "name": names[one] if one < len(names) else None} for one in labels]


def _attributes(library: Library, view: View, row: int) -> list[dict[str, str]]:
    if view.attributes is None:
        return []
    table = library.table(view.attributes, "image_attributes")
    return table.filter(pl.col("image") == row).select("attribute", "value").to_dicts()
