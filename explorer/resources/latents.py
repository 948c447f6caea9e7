"""`latents`: every latent of a view in a table that sorts and filters, and single columns for the scatter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.resources.columns import page
from patchsae.explorer.resources.joined import joined
from patchsae.explorer.view import View
from patchsae.pipeline.core.text import nearest


def rows(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """A page of the latents that `where` keeps. Raises UserError for an argument that is wrong."""
    frame, sort = _frame(library, library.view(arguments["view"]), arguments)
    # Columns of other tables, of which there may be a hundred, are given if they are asked for.
    shown = arguments.get("columns") or ",".join(name for name in frame.columns if "." not in name)
    return page(frame, {**arguments, "columns": shown}, sort)


def column(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """One value for each latent, in the order of their ids."""
    frame, _ = _frame(library, library.view(arguments["view"]), arguments)
    name = arguments["name"]
    if name not in frame.columns:
        raise Absent(f"column {name[:100]}: the latents have no such column{nearest(name, frame.columns)}")
    return {"name": name, "values": frame[name].to_list()}


def _frame(library: Library, view: View, arguments: Mapping[str, str]) -> tuple[pl.DataFrame, str | None]:
    """The table `latents` with the columns that `class` and `words` add, and the column that it is sorted by."""
    frame, sort = joined(library, view), None
    if arguments.get("class"):
        frame = frame.join(
            _of_class(library, view, arguments["class"]), on="latent", how="left", maintain_order="left"
        )
        frame = frame.with_columns(pl.col("class_n_images", "class_n_tokens").fill_null(0))
        sort = "-class_n_images"
        for rows in _remapped(view, arguments["class"]):
            frame = frame.join(rows, on="latent", how="left", maintain_order="left")
    if words := arguments.get("words", "").strip():
        from patchsae.explorer.resources.search import word_scores

        frame = frame.with_columns(word_score=word_scores(library, view, words))
        sort = "-word_score"
    return frame, sort


def _of_class(library: Library, view: View, text: str) -> pl.DataFrame:
    label = class_id(library, view, text)
    return (
        view.statistics.scan("class_latents")
        .filter(pl.col("class") == label)
        .select("latent", pl.col("n_images", "n_tokens", "mean_activation").name.prefix("class_"))
        .collect()
    )


def _remapped(view: View, text: str) -> Iterator[pl.DataFrame]:
    """For each remapping of the view, what became of the latents of a class: x, y, group and activity."""
    for artifact in view.made_from("remapping"):
        place = next(iter(view.snapshot.places("remapping", artifact.key)), None)
        prefix = place.name if place else artifact.key[:16]
        yield (
            artifact.scan("remapping_latents")
            .filter(pl.col("class") == int(text))
            .select("latent", pl.col("x", "y", "group", "activity").name.prefix(f"{prefix}."))
            .unique("latent")
            .collect()
        )


def class_id(library: Library, view: View, text: str) -> int:
    """The class that an address names. Raises Absent if the view has no such class."""
    n = view.n_classes
    if text.isascii() and text.isdecimal() and len(text) < 12 and (n is None or int(text) < n):
        return int(text)
    known = "none, since the index of its images is gone" if n is None else f"0 to {n - 1:,}"
    raise Absent(f"class {text[:100]}: there is no such class; the classes of this dataset are {known}.")
