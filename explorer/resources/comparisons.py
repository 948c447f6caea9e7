"""`remapping` and `matching`: a backbone before and after adaptation, and two SAEs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.resources.columns import page
from patchsae.explorer.snapshot import Snapshot
from patchsae.explorer.view import SAE_STAGES, View
from patchsae.pipeline.evaluations.remapping.groups import ACTIVITIES, GROUPS, bounds
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import KEY_DIGITS

_SIDES = ("before statistics", "after statistics")


def remapping(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """What adaptation did to the concepts of a dataset, in numbers per class."""
    artifact = library.artifact(arguments["key"], ["remapping"], "remapping")
    snapshot = library.snapshot()
    heads = {one["key"]: one for one in library.heads()}
    first, second = (heads.get(artifact.manifest.inputs[side][:KEY_DIGITS]) for side in _SIDES)
    members = library.table(artifact, "remapping_latents")
    counts = {
        name: dict(members.filter(pl.col(column) == name).group_by("class").len().iter_rows())
        for column, names in (("group", GROUPS), ("activity", ACTIVITIES))
        for name in names
    }
    predictions = library.table(artifact, "remapping_predictions")
    return {
        **_about(snapshot, artifact),
        "first": first,
        "second": second,
        "upper": artifact.manifest.config["upper"],
        "lower": artifact.manifest.config["lower"],
        "classes": [
            {"class": label, "name": name, **{of: counts[of].get(label, 0) for of in counts}}
            for label, name in sorted(_class_names(predictions, members).items())
        ],
        "summary": library.table(artifact, "remapping").to_dicts(),
        "ks": predictions["k"].unique(maintain_order=True).to_list(),
    }


def _class_names(predictions: pl.DataFrame, members: pl.DataFrame) -> dict[int, str]:
    both = pl.concat([one.select("class", "class_name") for one in (predictions, members)]).unique()
    return dict(both.iter_rows())


def remapping_class(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """The latents of one class by their counts before and after, with the bounds U and L, and its predictions."""
    artifact = library.artifact(arguments["key"], ["remapping"], "remapping")
    members = library.table(artifact, "remapping_latents")
    predictions = library.table(artifact, "remapping_predictions")
    names = _class_names(predictions, members)
    text = arguments["class"]
    label = int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else -1
    if label not in names:
        raise Absent(f"class {text[:100]}: this remapping has no such class; it has {_listed(names)}.")
    counts = _counts(library.snapshot(), artifact, label)
    config = artifact.manifest.config
    U, L = bounds(counts[0], counts[1], config["upper"], config["lower"])
    fired = np.flatnonzero(counts.any(axis=0))
    of_class = members.filter(pl.col("class") == label).select("latent", "group", "activity")
    points = pl.DataFrame(
        {"latent": fired.astype(np.int32), "x": counts[0][fired], "y": counts[1][fired]}
    ).join(of_class, on="latent", how="left", maintain_order="left")
    shown = predictions.filter(pl.col("class") == label).select(
        "classes", "model", "k", "predicted", pl.col("predicted_name").alias("name"), "n"
    )
    return {
        "class": label,
        "name": names[label],
        "U": max(1, int(U[0])),
        "L": int(L[0]),
        "points": points.to_dicts(),
        "predictions": shown.to_dicts(),
    }


def _listed(names: Mapping[int, str]) -> str:
    known = sorted(names)
    return f"{known[0]} to {known[-1]}" if known else "none"


def _counts(snapshot: Snapshot, artifact: Artifact, label: int) -> np.ndarray:
    """The tokens of a class above tau, before and after: int64 [2, S]."""
    found = []
    for side in _SIDES:
        statistics = snapshot.input_of(artifact, side, "statistics")
        if statistics is None:
            raise Absent(
                f"remapping {artifact.key[:KEY_DIGITS]}: the {side} that it compares are no longer in the store; run its "
                "experiment again."
            )
        view = View(snapshot, statistics)
        rows = (
            statistics.scan("class_latents")
            .filter(pl.col("class") == label)
            .select("latent", "n_tokens")
            .collect()
        )
        counts = np.zeros(view.n_latents, np.int64)
        counts[rows["latent"].to_numpy()] = rows["n_tokens"].to_numpy()
        found.append(counts)
    return np.stack(found)


def matching(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """How alike the latents of two SAEs are."""
    artifact = library.artifact(arguments["key"], ["matching"], "matching")
    snapshot = library.snapshot()
    heads = library.heads()
    sides = {}
    for side in ("first", "second"):
        key = artifact.manifest.inputs[f"{side} sae"][:KEY_DIGITS]
        places = [one for stage in SAE_STAGES for one in snapshot.places(stage, key)]
        name = next((one.node.names.get("sae") for one in places), None) or key
        sides[side] = {"sae": name, "sae_key": key, "views": [one for one in heads if one["sae_key"] == key]}
    return {
        **_about(snapshot, artifact),
        **sides,
        "summary": library.table(artifact, "matching").to_dicts(),
        "n": len(library.table(artifact, "matching_latents")),
    }


def matching_rows(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """A page of the alive latents of one side, each with its partners on the other side."""
    artifact = library.artifact(arguments["key"], ["matching"], "matching")
    side = arguments.get("side") or "first"
    if side not in ("first", "second"):
        raise UserError(f"side={side[:100]}: is no side; write first or second.")
    table = library.table(artifact, "matching_latents").filter(pl.col("side") == side).drop("side")
    return page(table, arguments, "-mass")


def _about(snapshot: Snapshot, artifact: Artifact) -> dict[str, Any]:
    place = next(iter(snapshot.places(artifact.stage, artifact.key)), None)
    key = artifact.key[:KEY_DIGITS]
    return {
        "key": key,
        "name": place.name if place else key,
        "experiment": place.experiment if place else None,
    }
