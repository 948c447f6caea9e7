"""What every registered evaluation must do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from patchsae.pipeline.core import registry
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.evaluations import kinds as evaluations
from patchsae.pipeline.evaluations.evaluation import EvaluationConfig
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store
from tests.support.small_run import ADAPTED_ADDRESSES, EXPERIMENT

KINDS = registry.variants(evaluations, EvaluationConfig)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_its_stage_has_its_name(kind: str) -> None:
    config = KINDS[kind]
    assert issubclass(config, EvaluationConfig)
    assert config.stage().name == kind


@pytest.fixture
def artifact(
    kind: str, small_store: Store, tiny_checkpoint: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Artifact:
    """What an evaluation of the kind makes of the small experiment, with the settings it has by itself."""
    if kind in ADAPTED_ADDRESSES:
        adapted: Store = request.getfixturevalue("adapted_store")
        return adapted.committed(kind)[0]
    found = small_store.committed(kind)
    if not found:
        names = {"datasets": "digits", "saes": "relu", "evaluations": "statistics"}
        fields = {field: names[sections[0]] for field, sections in KINDS[kind].names_in().items()}
        text = (
            EXPERIMENT.format(checkpoint=str(tiny_checkpoint))
            + f"  new: {json.dumps({'kind': kind, **fields})}\n"
        )
        store = Store(shutil.copytree(small_store.root, tmp_path / "store"))
        run(work_on(store, parse(text, "new")), Runtime())
        found = store.committed(kind)
    return found[0]


def test_its_tables_explain_themselves_and_carry_their_artifact(artifact: Artifact) -> None:
    files = [artifact.path / o.path for o in artifact.manifest.outputs if o.path.endswith(".parquet")]
    assert files
    for file in files:
        schema = pq.read_schema(file)
        assert all(field.metadata[b"description"].endswith(b".") for field in schema)
        assert pq.read_table(file)["artifact"].unique().to_pylist() == [artifact.key]


def test_its_summary_is_numbers_to_show(artifact: Artifact) -> None:
    assert artifact.manifest.summary
    assert all(isinstance(value, int | float | str) for value in artifact.manifest.summary.values())
