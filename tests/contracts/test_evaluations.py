"""What every registered evaluation must do."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from pipeline import evaluations, registry
from pipeline.evaluations.base import EvaluationConfig
from storage.artifacts import Store

KINDS = registry.variants(evaluations, EvaluationConfig)


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_its_stage_has_its_name(kind: str) -> None:
    config = KINDS[kind]
    assert issubclass(config, EvaluationConfig)
    assert config.stage().name == kind


def test_its_tables_explain_themselves_and_carry_their_artifact(kind: str, small_store: Store) -> None:
    [artifact] = small_store.committed(kind)
    files = [artifact.path / o.path for o in artifact.manifest.outputs if o.path.endswith(".parquet")]
    assert files
    for file in files:
        schema = pq.read_schema(file)
        assert all(field.metadata[b"description"].endswith(b".") for field in schema)
        assert pq.read_table(file)["artifact"].unique().to_pylist() == [artifact.key]


def test_its_summary_is_numbers_to_show(kind: str, small_store: Store) -> None:
    [artifact] = small_store.committed(kind)
    assert artifact.manifest.summary
    assert all(isinstance(value, int | float | str) for value in artifact.manifest.summary.values())
