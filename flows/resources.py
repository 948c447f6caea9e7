"""What a run may use: a device, processes, Dask. Nothing here changes a result."""

from __future__ import annotations

import socket
import urllib.parse

import torch
from pydantic import BaseModel, ConfigDict, Field

from pipeline.metric_writers import check_logs
from storage.errors import UserError


class Resources(BaseModel):
    """What may differ between two runs without changing a byte of the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str | None = Field(None, description="cpu, cuda or cuda:1; empty: CUDA where there is one.")
    workers: int | None = Field(
        None, ge=0, description="Processes that decode images; empty: half the cores, none on a CPU."
    )
    checkpoint_seconds: float = Field(60.0, gt=0, description="Seconds between two checkpoints of training.")
    processes: int = Field(
        1, ge=1, description="Processes (GPUs) of this machine that train one SAE together, by torchrun."
    )
    torchrun: str = Field("--standalone", description="torchrun's arguments where machines train together.")
    members: int = Field(8, ge=1, description="SAEs trained in one pass over the activations, at most.")
    log: tuple[str, ...] = Field((), description="Where training metrics go too: tensorboard, wandb.")
    dask: str = Field(
        "local",
        description="Where parts of statistics and masking run: `local` (one process per core), "
        "`none` (this process), or the address of a Dask scheduler (tcp://host:8786).",
    )


def check_resources(resources: Resources) -> None:
    """Raises UserError, before anything is started, if the device or the scheduler is not there."""
    _check_device(resources.device)
    check_logs(resources.log)
    _check_dask(resources.dask)


def _check_device(name: str | None) -> None:
    if name is None:
        return
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: no device of that name; write cpu, cuda or cuda:1.") from None
    n_devices = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= n_devices:
        raise UserError(
            f"--device {name}: this machine has {n_devices or 'no'} CUDA devices; leave --device out to use what "
            "there is."
        )


def _check_dask(address: str) -> None:
    """Raises UserError if `address` is neither `local` nor `none` nor that of a scheduler that listens."""
    if address in ("local", "none"):
        return
    try:
        parts = urllib.parse.urlsplit(address)
        where = (parts.hostname, parts.port)
    except ValueError:
        where = (None, None)
    if not all(where):
        raise UserError(f"--dask {address}: write `local`, `none`, or a scheduler as tcp://HOST:PORT.")
    try:
        socket.create_connection(where, timeout=10).close()
    except OSError as error:
        raise UserError(
            f"--dask {address}: no scheduler answers there ({error.strerror or error}); start one with "
            "`dask scheduler`, or leave --dask out to run on this machine."
        ) from None
