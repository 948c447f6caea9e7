"""Training metrics for TensorBoard and Weights & Biases, each through its own library; off by default.

The table `training` is the record, these are views of it: a run that goes on from a checkpoint may write some
steps again, with the values they had.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pipeline.saes.objective import TrainedSaeConfig
from storage.artifacts import Builder
from storage.errors import UserError

LOGS = ("tensorboard", "wandb")
WANDB_PROJECT = "patchsae"


class MetricWriter(Protocol):
    """Takes the metrics of single steps."""

    def write(self, row: Mapping[str, float]) -> None:
        """A row of the table `training`."""

    def close(self) -> None:
        """Nothing is written after this."""


class TensorBoard:
    """Event files in a folder of their own for each SAE."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier run wrote of the steps that come again is not shown.
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def write(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, int(row["step"]))

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run in the project `patchsae` (WANDB_PROJECT names another), known by the artifact's key."""

    def __init__(self, folder: Path, name: str, key: str, config: TrainedSaeConfig) -> None:
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
                config=config.model_dump(mode="json"),
            )
        except wandb.errors.Error as error:
            raise UserError(f"--log wandb: {error}; run `wandb login`, or set WANDB_MODE=offline.") from None

    def write(self, row: Mapping[str, float]) -> None:
        self._run.log({f"train/{n}": v for n, v in row.items() if n != "step"}, step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()


def logs_folder(out: Builder) -> Path:
    """Where writers put their files: `logs` of the store, beside the artifacts."""
    return out.path.parent.parent / "logs"


@contextlib.contextmanager
def open_writers(
    logs: Sequence[str], out: Builder, config: TrainedSaeConfig, n_steps_done: int
) -> Iterator[list[MetricWriter]]:
    """The writers asked for, of one SAE that has taken so many steps; closed in the end.

    Raises UserError if Weights & Biases does not let us in.
    """
    folder, name = logs_folder(out), f"{config.key_config()['kind']}-{out.key[:16]}"
    writers: list[MetricWriter] = []
    with contextlib.ExitStack() as opened:
        for log in logs:
            match log:
                case "tensorboard":
                    writers.append(TensorBoard(folder / "tensorboard" / name, n_steps_done + 1))
                case "wandb":
                    writers.append(Wandb(folder, name, out.key, config))
            opened.callback(writers[-1].close)
        yield writers


def check_logs(logs: Sequence[str]) -> None:
    """Raises UserError if the library of one of them is not installed, or there is no such writer."""
    for log in logs:
        if log not in LOGS:
            raise UserError(f"--log {log}: no such writer; there are {' and '.join(LOGS)}.")
        if importlib.util.find_spec(log) is None:
            raise UserError(
                f"--log {log}: the package `{log}` is not installed; start with `uv run --extra {log} patchsae`."
            )
