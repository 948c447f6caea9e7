"""A store with the table `adaptation` of adapters on published datasets, written without training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import pyarrow as pa

from patchsae.pipeline.evaluations.kinds.adaptation import ADAPTATION
from patchsae.storage.artifacts import Artifact
from patchsae.storage.keys import artifact_key
from patchsae.storage.records import ExperimentRecord, RecordedNode
from patchsae.storage.store import Store
from patchsae.storage.tables import TableSchema

_EMPTY = {column.name: "" if column.type == pa.string() else 0 for column in ADAPTATION.columns}
CLIP = {
    "kind": "open_clip",
    "model": "ViT-B-16-quickgelu",
    "pretrained": "openai",
    "checkpoint": None,
    "extract": {"hook_block": -2},
}


def adapter(dataset: str, seed: int = 1, **fields: Any) -> dict[str, Any]:
    """The config of a MaPLe adapter, as a record has it."""
    own = {"kind": "maple", "backbone": "clip", "classes": "base", "shots": 16, "lr": 0.0035}
    return {**own, "dataset": dataset, "seed": seed, **fields}


def commit_adaptation(
    store: Store,
    name: str,
    datasets: Mapping[str, Mapping[str, Any]],
    adapters: Mapping[str, Mapping[str, Any]],
    values: Mapping[tuple[str, str], Mapping[str, float]],
    backbone: Mapping[str, Any] = CLIP,
    started: float = 0.0,
    evaluation: Mapping[str, Any] | None = None,
) -> Artifact:
    """Commits an artifact with a row per adapter and classes, and records its experiment.

    `values` maps (adapter, classes) to some of the columns; the others are 0 or empty.
    """
    rows: list[dict[str, Any]] = []
    for (of, classes), numbers in values.items():
        one = adapters[of]
        about = {"adapter": of, "classes": classes, **{key: one[key] for key in ("kind", "dataset", "seed")}}
        rows.append({**_EMPTY, **about, **numbers})
    config = {"experiment": name, "started": started, "tau": (evaluation or {}).get("tau")}
    artifact = commit(store, "adaptation", config, ADAPTATION, rows, started)
    nodes = {"adaptation/all": RecordedNode("adaptation", artifact.key, {"sae": "relu", "evaluation": "all"})}
    experiment = {
        "name": name,
        "datasets": datasets,
        "backbones": {"clip": backbone},
        "adapters": adapters,
        "evaluations": {"all": {"kind": "adaptation", "adapters": list(adapters), **(evaluation or {})}},
    }
    store.records.write(name, ExperimentRecord(nodes, experiment), newest=True)
    return artifact


def commit(
    store: Store,
    stage: str,
    config: Mapping[str, Any],
    schema: TableSchema,
    rows: Sequence[Mapping[str, Any]],
    started: float = 0.0,
    summary: Mapping[str, Any] | None = None,
) -> Artifact:
    """Commits an artifact with one table."""
    with mock.patch.object(os, "fsync"):
        builder = store.begin(store.at(stage, artifact_key(stage, 1, config, {})))
        columns = {column.name: [row[column.name] for row in rows] for column in schema.columns}
        builder.write_table(schema, columns)
        return store.commit(builder, 1, config, {}, dict(summary or {}), {"started": started})
