"""Training metrics for TensorBoard and Weights & Biases, each through its own library; off by default.

`pipeline.training.train` opens the writers that `--log` names. The table `training` is the record and these
are views of it: a run that goes on from a checkpoint may write some steps twice, with the same values.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from patchsae.storage.errors import UserError

LOGS = ("tensorboard", "wandb")
WANDB_PROJECT = "patchsae"


class MetricWriter(Protocol):
    """Receives the metrics of single steps."""

    def write(self, row: Mapping[str, float]) -> None:
        """Writes one row of the table `training`."""

    def close(self) -> None:
        """Ends writing; no row may follow."""


class TensorBoard:
    """Writes event files into `folder`, which is one SAE's own."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard hides what an earlier run wrote from `first_step` on, because those steps come again.
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, int(row["step"]))

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Writes to a run of the project `patchsae` (or WANDB_PROJECT), identified by the artifact's key."""

    def __init__(self, folder: Path, name: str, key: str, config: Mapping[str, Any]) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
                dir=str(folder),
                name=name,
                id=key[:16],
                resume="allow",
                reinit="create_new",
                config=dict(config),
            )
        except wandb.errors.Error as error:
            raise UserError(f"--log wandb: {error}; run `wandb login`, or set WANDB_MODE=offline.") from None

    def write(self, row: Mapping[str, float]) -> None:
        self._run.log({f"train/{n}": v for n, v in row.items() if n != "step"}, step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()


@contextlib.contextmanager
def open_writers(
    logs: Sequence[str], folder: Path, name: str, key: str, config: Mapping[str, Any], n_steps_done: int
) -> Iterator[list[MetricWriter]]:
    """Opens the writers `logs` for one SAE that has taken `n_steps_done` steps, and closes them at the end.

    The writers put files below `folder`, show the SAE as `name` and identify it by `key`; `config` is what it
    is trained with. Raises UserError if Weights & Biases refuses the login.
    """
    writers: list[MetricWriter] = []
    with contextlib.ExitStack() as opened:
        for log in logs:
            match log:
                case "tensorboard":
                    writers.append(TensorBoard(folder / "tensorboard" / name, n_steps_done + 1))
                case "wandb":
                    writers.append(Wandb(folder, name, key, config))
            opened.callback(writers[-1].close)
        yield writers


def check_logs(logs: Sequence[str]) -> None:
    """Raises UserError if one of `logs` is not the name of a writer, or its library is not installed."""
    for log in logs:
        if log not in LOGS:
            raise UserError(f"--log {log}: no such writer; there are {' and '.join(LOGS)}.")
        if importlib.util.find_spec(log) is None:
            raise UserError(
                f"--log {log}: the package `{log}` is not installed; start with "
                f"`uv run --extra {log} patchsae`."
            )
