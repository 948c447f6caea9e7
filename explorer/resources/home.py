"""`home`: experiments with their stages, SAEs, comparisons and frontiers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import polars as pl

from patchsae.explorer.library import Library
from patchsae.explorer.resources.training import is_running
from patchsae.explorer.snapshot import Snapshot
from patchsae.explorer.view import SAE_STAGES
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import KEY_DIGITS
from patchsae.storage.records import ExperimentRecord, RecordedNode


def home(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """What the store holds. See the shapes in `explorer/resources/__init__.py`."""
    snapshot = library.snapshot()
    views = library.heads()
    problems = list(snapshot.problems)
    frontiers = []
    for artifact in snapshot.committed("frontier"):
        try:
            frontiers.append(_frontier(library, snapshot, artifact))
        except UserError as error:
            problems.append(str(error))
    return {
        "version": library.version,
        "store": str(library.store.root),
        "mode": library.mode,
        "problems": problems,
        "advice": _advice(library, snapshot, views),
        "experiments": [
            {
                "name": name,
                "updated": _time(snapshot.at.records.get(name)),
                "earlier": name not in library.current(snapshot),
                "nodes": [_node(library, snapshot, record, address) for address in record.nodes],
            }
            for name, record in sorted(
                snapshot.records.items(), key=lambda item: -snapshot.at.records.get(item[0], 0)
            )
        ],
        "views": views,
        "saes": _saes(library, snapshot, views),
        "comparisons": [
            _comparison(snapshot, kind, artifact)
            for kind in ("remapping", "matching")
            for artifact in snapshot.committed(kind)
        ],
        "frontiers": frontiers,
    }


def _advice(library: Library, snapshot: Snapshot, views: list[dict[str, Any]]) -> str | None:
    """What to run if there is nothing to see yet."""
    root = library.store.root
    if not root.is_dir():
        return f"There is no store at {root}. `patchsae demo --store {root}` makes one with a small example."
    if not snapshot.held:
        return f"The store {root} is empty. `patchsae demo --store {root}` fills it with a small example."
    if not views:
        return (
            "No SAE of this store has statistics yet. Add an evaluation of kind `statistics` to the experiment and run "
            "it, or wait for a run that is going on."
        )
    return None


def _time(seconds: float | None) -> str | None:
    return None if not seconds else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _node(library: Library, snapshot: Snapshot, record: ExperimentRecord, address: str) -> dict[str, Any]:
    node = record.nodes[address]
    held = snapshot.find(node.stage, node.key)
    manifest = held.artifact.manifest if held and held.state == "committed" else None
    state: str = "absent" if held is None else held.state
    if state != "damaged" and is_running(library.store, node.stage, node.key):
        state = "running"
    return {
        "address": address,
        "stage": node.stage,
        "name": address.partition("/")[2],
        "key": node.key[:KEY_DIGITS],
        "state": state,
        "inputs": node.inputs,
        "summary": manifest.summary if manifest else {},
        "names": node.names,
        "made": _time(manifest.provenance.get("started")) if manifest else None,
    }


def _saes(library: Library, snapshot: Snapshot, views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every SAE in the store or in training; one that experiments share comes once."""
    found: dict[str, dict[str, Any]] = {}
    for name, record in snapshot.records.items():
        for node in record.nodes.values():
            if node.stage in SAE_STAGES:
                key = node.key[:KEY_DIGITS]
                one = found.setdefault(key, _sae(library, snapshot, record, node))
                one["experiments"].append(name)
    for artifact in snapshot.committed(*SAE_STAGES):
        key = artifact.key[:KEY_DIGITS]
        if key not in found:
            node = RecordedNode(artifact.stage, artifact.key)
            found[key] = _sae(library, snapshot, None, node)
    shown = [one for one in found.values() if one["n_latents"] is not None or one["training"]]
    for one in shown:
        one["views"] = [view["key"] for view in views if view["sae_key"] == one["key"]]
    return shown


def _sae(
    library: Library, snapshot: Snapshot, record: ExperimentRecord | None, node: RecordedNode
) -> dict[str, Any]:
    held = snapshot.find(node.stage, node.key)
    manifest = held.artifact.manifest if held and held.state == "committed" else None
    extract = snapshot.input_of(held.artifact, "activations", "extract") if held and manifest else None
    name = node.names.get("sae")
    config = ((record.experiment if record else None) or {}).get("saes", {}).get(name, {})
    return {
        "key": node.key[:KEY_DIGITS],
        "name": name or node.key[:KEY_DIGITS],
        "experiments": [],
        "objective": (manifest.config if manifest else config).get("kind"),
        "n_latents": manifest.summary.get("n_latents") if manifest else None,
        "d": extract.manifest.summary.get("width") if extract else None,
        "dataset": node.names.get("dataset"),
        "backbone": node.names.get("backbone"),
        "views": [],
        "training": manifest is None and is_running(library.store, node.stage, node.key),
    }


def _comparison(snapshot: Snapshot, kind: str, artifact: Artifact) -> dict[str, Any]:
    place = next(iter(snapshot.places(kind, artifact.key)), None)
    roles = ("before statistics", "after statistics") if kind == "remapping" else ("first sae", "second sae")
    about = "backbone" if kind == "remapping" else "sae"
    stages = ("statistics",) if kind == "remapping" else SAE_STAGES
    first, second = (
        next(
            (
                other.node.names.get(about)
                for stage in stages
                for other in snapshot.places(stage, artifact.manifest.inputs[role])
            ),
            artifact.manifest.inputs[role][:KEY_DIGITS],
        )
        for role in roles
    )
    return {
        "kind": kind,
        "key": artifact.key[:KEY_DIGITS],
        "name": place.name if place else artifact.key[:KEY_DIGITS],
        "experiment": place.experiment if place else None,
        "first": first,
        "second": second,
    }


def _frontier(library: Library, snapshot: Snapshot, artifact: Artifact) -> dict[str, Any]:
    place = next(iter(snapshot.places("frontier", artifact.key)), None)
    table = library.table(artifact, "frontier")
    if "sae_key" not in table.columns:
        table = table.rename({"key": "sae_key"})
    names = {}
    for key in table["sae_key"]:
        places = [one for stage in SAE_STAGES for one in snapshot.places(stage, key)]
        # The name that the frontier's own experiment has for it, if it has one.
        places.sort(key=lambda one: place is None or one.experiment != place.experiment)
        names[key] = next((one.node.names.get("sae") for one in places), None) or key[:KEY_DIGITS]
    rows = table.sort("l0", "fvu").with_columns(
        sae=pl.col("sae_key").cast(pl.String).replace_strict(names),
        sae_key=pl.col("sae_key").cast(pl.String).str.head(KEY_DIGITS),
    )
    best = rows.drop_nulls("fvu").sort("fvu", "l0")
    return {
        "key": artifact.key[:KEY_DIGITS],
        "experiment": place.experiment if place else None,
        "evaluation": place.name if place else artifact.key[:KEY_DIGITS],
        "rows": rows.drop("config", strict=False).to_dicts(),
        "picked": best["sae_key"][0] if len(best) else None,
    }
