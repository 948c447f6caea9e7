"""Metrics for TensorBoard and Weights & Biases: what their own readers find."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from patchsae.flows.cli.app import app
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.training import train
from patchsae.pipeline.training.writers import check_logs
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.sae_inputs import run
from tests.support.training_inputs import EVERY_STEP, Killed, bytes_of, config_of, inputs_in, killed_at


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar in the event files of a folder: name -> step -> value."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: {e.step: e.value for e in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_tensorboard_is_told_the_table_through_a_kill(store: Store, tmp_path: Path) -> None:
    inputs, config = inputs_in(store), config_of("topk")
    runtime = replace(EVERY_STEP, log=("tensorboard",))
    with pytest.raises(Killed):
        run(store, train.STAGE, config, inputs, killed_at(11, runtime))
    artifact = run(store, train.STAGE, config, inputs, runtime)
    expected: dict[str, dict[int, float]] = defaultdict(dict)
    for row in pl.read_parquet(artifact.path / "tables" / "training.parquet").iter_rows(named=True):
        for name, value in row.items():
            if name not in ("step", "artifact") and not isinstance(value, str):
                expected[f"train/{name}"][row["step"]] = pytest.approx(value, rel=1e-6, nan_ok=True)
    [folder] = (store.root / "logs" / "tensorboard").iterdir()
    assert folder.name == f"topk-{artifact.key[:16]}"
    assert scalars(folder) == expected
    assert not [a for a, _ in store.artifacts() if a.stage == "logs"]


def test_logging_changes_no_byte(tmp_path: Path) -> None:
    found = []
    for name, log in (("plain", ()), ("logged", ("tensorboard",))):
        store = Store(tmp_path / name)
        found.append(bytes_of(run(store, train.STAGE, config_of("topk"), inputs_in(store), Runtime(log=log))))
    assert found[0] == found[1]


def test_wandb_keeps_a_run_per_sae(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    artifact = run(store, train.STAGE, config_of("topk"), inputs_in(store), Runtime(log=("wandb",)))
    [folder] = (store.root / "logs" / "wandb").glob("offline-run-*")
    assert folder.name.endswith(artifact.key[:16])
    data = (folder / f"run-{artifact.key[:16]}.wandb").read_bytes()
    assert b"train/explained_variance" in data


def test_unknown_writers_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(app, ["run", "demo", "--store", str(tmp_path / "s"), "--log", "tensorbord"])
    assert result.exit_code == 2 and "--log tensorbord: no such writer" in result.stderr
    assert not (tmp_path / "s" / "index").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="`wandb` is not installed; start with `uv run --extra wandb"):
        check_logs(["wandb"])
