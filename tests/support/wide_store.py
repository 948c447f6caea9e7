"""A store of many small SAEs, written without training, for tests of what grows with the number of artifacts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from unittest import mock

import pyarrow as pa

from patchsae.storage.artifacts import Artifact
from patchsae.storage.keys import artifact_key
from patchsae.storage.records import ExperimentRecord, RecordedNode
from patchsae.storage.store import Store
from patchsae.storage.tables import Column, TableSchema

TRAINING = TableSchema("training", "Steps.", (Column("step", pa.int64(), "Step."),))


def commit_saes(
    store: Store, configs: Sequence[Mapping[str, object]], inputs: Mapping[str, str], version: int = 5
) -> list[Artifact]:
    """Commits an artifact of the stage `train` for each config, with a table `training` of one row: its number."""
    made = []
    with mock.patch.object(os, "fsync"):
        for i, config in enumerate(configs):
            key = artifact_key("train", version, config, inputs)
            builder = store.begin(store.at("train", key))
            builder.write_table(TRAINING, {"step": [i]})
            made.append(store.commit(builder, version, config, inputs, {"n_latents": 8}, {"started": 0.0}))
    return made


def record(store: Store, experiment: str, saes: Mapping[str, Artifact]) -> None:
    """Records an experiment whose SAEs, by name, are these artifacts."""
    nodes = {
        f"train/{name}": RecordedNode("train", artifact.key, {"sae": name}) for name, artifact in saes.items()
    }
    store.records.write(experiment, ExperimentRecord(nodes, {"name": experiment}), newest=True)
