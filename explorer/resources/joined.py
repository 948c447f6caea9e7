"""Columns that other tables of the store have for the latents of a view: of matchings, adapted backbones, galleries.

A table counts if it has one row per latent. Its columns are named after where they are from, as
`matching.nearest_cosine`, so that they can be filtered and sorted by beside those of the table `latents`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from patchsae.explorer.library import Library
from patchsae.explorer.view import View
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError

_SIBLINGS = 8
# Columns that tell rows of one latent apart, so that a table with one of them has several rows per latent.
_SEVERAL = frozenset({"class", "image", "rank", "low", "side", "k", "other"})


@dataclass(frozen=True)
class Other:
    """A table with a row per latent. `prefix` stands in front of its columns' names."""

    prefix: str
    artifact: Artifact
    table: str
    only: pl.Expr | None = None
    without: tuple[str, ...] = ()

    def rows(self) -> pl.DataFrame:
        """Its rows with the column `latent` and the others under their longer names."""
        scanned = self.artifact.scan(self.table)
        if self.only is not None:
            scanned = scanned.filter(self.only)
        chosen = scanned.drop("artifact", *self.without, strict=False)
        named = {
            name: f"{self.prefix}.{name}" for name in chosen.collect_schema().names() if name != "latent"
        }
        return chosen.rename(named).unique("latent", keep="first", maintain_order=True).collect()


def joined(library: Library, view: View) -> pl.DataFrame:
    """The table `latents` of a view with the columns of `others`. One that is damaged is left out."""
    base = library.table(view.statistics, "latents")
    found = list(others(library, view))
    if not found:
        return base

    def join() -> pl.DataFrame:
        frame = base
        for other in found:
            try:
                frame = frame.join(other.rows(), on="latent", how="left", maintain_order="left")
            except UserError:
                continue
        return frame

    digests = tuple((one.artifact.manifest.digest, one.prefix, one.table) for one in found)
    key = ("joined", view.statistics.manifest.digest, digests)
    return library.cache.get(key, join, lambda frame: int(frame.estimated_size()))


def sentences(library: Library, view: View) -> list[dict[str, str]]:
    """Name, type, sentence and table of the columns of `joined`."""
    frame = joined(library, view)
    known = {name: (text, "latents") for name, text in view.statistics.sentences("latents").items()}
    for other in others(library, view):
        if any(name.startswith(f"{other.prefix}.") for name in frame.columns):
            for name, text in other.artifact.sentences(other.table).items():
                known.setdefault(f"{other.prefix}.{name}", (text, other.table))
    return [
        {
            "name": name,
            "type": str(kind),
            **dict(zip(("sentence", "table"), known.get(name, ("", "")), strict=True)),
        }
        for name, kind in frame.schema.items()
    ]


def others(library: Library, view: View) -> Iterator[Other]:
    """The tables that have a row for each latent of the view, each with a prefix of its own."""
    taken: set[str] = set()
    for other in _candidates(library, view):
        prefix = other.prefix if other.prefix not in taken else f"{other.prefix}-{other.artifact.key[:6]}"
        taken.add(prefix)
        yield Other(prefix, other.artifact, other.table, other.only, other.without)


def _candidates(library: Library, view: View) -> Iterator[Other]:
    snapshot = view.snapshot
    for artifact in snapshot.committed("matching"):
        for side in ("first", "second"):
            if artifact.manifest.inputs[f"{side} sae"] == view.statistics.manifest.inputs["sae"]:
                name = _name(view, artifact)
                yield Other(name, artifact, "matching_latents", pl.col("side") == side, ("side",))
                break
    if view.gallery is not None:
        without = ("rank", "n_both", "n_latent", "n_other")
        yield Other("cofiring", view.gallery, "cofiring", pl.col("rank") == 1, without)
    stages = {stage for stage, _ in snapshot.held} - {"statistics", "matching", "remapping", "masking"}
    for artifact in (one for stage in sorted(stages) for one in view.made_from(stage)):
        for table in artifact.table_names():
            names = set(artifact.sentences(table))
            if "latent" in names and not names & _SEVERAL:
                yield Other(_name(view, artifact), artifact, table)
    if library.mode == "server":
        yield from _siblings(library, view)


def _siblings(library: Library, view: View) -> Iterator[Other]:
    """The statistics of the same SAE on the same images under other backbones, such as adapted ones."""
    mine = view.statistics.manifest.inputs
    same = [
        other
        for other in library.views()
        if other.key != view.key
        and other.sae_key == view.sae_key
        and other.statistics.manifest.inputs["images"] == mine["images"]
        and other.statistics.manifest.inputs["activations"] != mine["activations"]
        and other.config == view.config
    ]
    for other in same[:_SIBLINGS]:
        name = other.name("backbone") or other.key
        yield Other(name, other.statistics, "latents", without=("decoder_norm",))


def _name(view: View, artifact: Artifact) -> str:
    place = next(iter(view.snapshot.places(artifact.stage, artifact.key)), None)
    return place.name if place else artifact.key[:16]
