"""`Resources` as a parameter of flows, and checks that the device, loggers and Dask scheduler are there."""

from __future__ import annotations

import dataclasses
import socket
import typing
import urllib.parse
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, create_model

from patchsae.pipeline.core.resources import Resources
from patchsae.pipeline.training.writers import check_logs
from patchsae.storage.errors import UserError


def _field(setting: dataclasses.Field[Any]) -> Any:
    kind = typing.get_type_hints(Resources)[setting.name]
    least, sentence = setting.metadata["least"], setting.metadata["description"]
    return kind, Field(setting.default, ge=least, description=sentence)


ResourcesModel: type[BaseModel] = create_model(
    "Resources",
    __config__=ConfigDict(frozen=True, extra="forbid"),
    __doc__=Resources.__doc__,
    **{setting.name: _field(setting) for setting in dataclasses.fields(Resources)},
)
"""`Resources` as a pydantic model, from which Prefect gets a schema with sentences and checks values."""


def resources_of(model: BaseModel) -> Resources:
    return Resources(**model.model_dump())


def check_resources(resources: Resources) -> None:
    """Raises UserError if the device, a logger or the Dask scheduler is not there; called before a run."""
    check_device(resources.device)
    check_logs(resources.log)
    _check_dask(resources.dask)


def check_device(name: str | None) -> None:
    """Raises UserError if this machine has no device of that name. None is any device."""
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
    """Raises UserError unless `address` is `local`, `none`, or that of a scheduler that answers."""
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
