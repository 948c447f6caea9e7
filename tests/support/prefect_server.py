"""A Prefect server as other processes see it, and a small experiment that any process can run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

ROOT = Path(__file__).parents[2]

# ShapesCLIP, because a worker or a deployment knows only what the package ships.
EXPERIMENT = """
name: little
datasets:
  shapes: {kind: shapes, seed: 3, splits: {train: 700, test: 700}, label: colour}
backbones:
  clip: {kind: shapes_clip}
saes:
  relu: {kind: relu_l1, dataset: shapes, backbone: clip, n_latents: 256, batch_size: 1024, n_steps: 30}
evaluations:
  statistics: {kind: statistics, sae: relu, tau: 0.01}
  masking: {kind: masking, statistics: statistics, ks: [1, 5], n_random: 1}
"""
ADDRESSES = [
    "index/shapes",
    "weights/clip",
    "extract/shapes-clip",
    "train/relu",
    "statistics/statistics",
    "attributes/shapes",
    "classifier/shapes.shape-clip-dataset",
    "classifier/shapes.texture-clip-dataset",
    "classifier/shapes.background-clip-dataset",
    "classifier/shapes-clip-dataset",
    "masking/masking",
]


@dataclass(frozen=True)
class Server:
    """A running Prefect server and the environment that leads other processes to it."""

    url: str
    environment: dict[str, str]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *command],
            env=self.environment,
            cwd=ROOT,
            text=True,
            capture_output=True,
            check=check,
        )

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Starts a process that runs until its `communicate` is called."""
        return on_a_leash([sys.executable, "-m", *command], self.environment)


def on_a_leash(
    command: Sequence[str], environment: Mapping[str, str], stdout: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Starts a process that ends, with all that it has started, when this one closes its input or is gone."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.leash", *command],
        env=environment,
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def quiet_environment(home: Path) -> dict[str, str]:
    """An environment in which Prefect has no server, no profile and nothing to say."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return inherited | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
        "DO_NOT_TRACK": "1",
    }


def task_states(flow_run: FlowRunFilter, n_expected: int) -> dict[str, str]:
    """Name of every task run of a flow run -> its state.

    The server learns of task runs from events, a little later than they happen: waits until there are as many
    as expected and all are final. Flows called inside a task are not counted.
    """
    deadline = time.monotonic() + 60
    while True:
        with get_client(sync_client=True) as client:
            runs = [
                run for run in client.read_task_runs(flow_run_filter=flow_run) if "parts-" not in run.name
            ]
        done = [run for run in runs if run.state is not None and run.state.is_final()]
        if len(done) == len(runs) == n_expected or time.monotonic() > deadline:
            return {run.name: run.state.name for run in runs if run.state is not None}
        time.sleep(0.3)
