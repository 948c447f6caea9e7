"""A Prefect server as other processes see it, and a small experiment that any process can run."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            env=self.environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
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
