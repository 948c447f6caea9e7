"""Reads the state dict of a checkpoint: safetensors, torch files, and the TorchScript archives of OpenAI.

`read_header` reads names and shapes alone. `read_state` maps the tensors into memory, so that they are read from
the file when they are copied into a model, and are never in memory twice. Nothing in a file is executed.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from patchsae.pipeline.backbones.checkpoints import torchscript
from patchsae.pipeline.core.tensors import BROKEN, check_archive, check_dense, why_unreadable
from patchsae.pipeline.core.text import first_line
from patchsae.storage.errors import UserError

State = dict[str, Tensor]

_ARRAYS = (".npz", ".npy")
# How the names of the image tower begin in Google's files of SigLIP.
_SIGLIP = ("params/img/", "img/")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}


def file_fingerprint(path: Path) -> str:
    """The name, size and modification time of a file as a string. Raises UserError if it is not there."""
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file; give the path of the weights.")
    stat = path.stat()
    return f"file:{path.name}:{stat.st_size}:{stat.st_mtime_ns}"


def is_big_vision(path: Path) -> bool:
    """Whether it is a NumPy file, in which Google publishes SigLIP. open_clip reads it into a model itself."""
    return path.suffix in _ARRAYS


def check_arrays(path: Path, where: str) -> None:
    """Raises UserError, naming `where`, unless a NumPy file is a whole archive that holds arrays of a SigLIP."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(
            f"{where}: cannot be read as an archive of arrays ({first_line(error)}); get the file again."
        ) from error
    if not any(name.startswith(_SIGLIP) for name in names):
        raise UserError(
            f"{where}: has no array whose name begins with `{_SIGLIP[0]}` or `{_SIGLIP[1]}`, as Google's SigLIP has; "
            "save the model's state_dict() with torch or safetensors."
        )


def read_header(path: Path) -> State:
    """The names of a checkpoint's tensors, with tensors that have shape and type and no memory.

    Raises UserError if the file cannot be read, or holds no state dict.
    """
    if path.suffix == ".safetensors":
        return _read(path, _safetensors_header)
    return {name: tensor.to("meta") for name, tensor in read_state(path).items()}


def read_state(path: Path) -> State:
    """The tensors of a checkpoint by their names, on the CPU. Raises UserError as `read_header` does."""
    return _read(path, _safetensors if path.suffix == ".safetensors" else _torch_file)


def is_openai(path: Path) -> bool:
    """Whether it is a TorchScript archive, as which OpenAI, and nobody else, publishes its CLIPs."""
    return path.suffix != ".safetensors" and torchscript.is_archive(path)


def _read(path: Path, read: Any) -> State:
    where = f"checkpoint {path}"
    try:
        state: State = read(path, where)
    except (*BROKEN, OSError, SafetensorError) as error:
        raise UserError(
            f"{where}: cannot be read as a state dict ({why_unreadable(error)}); save the model's state_dict()."
        ) from error
    if all(name.startswith("module.") for name in state):
        # As training on several devices saves it.
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def _safetensors(path: Path, where: str) -> State:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _safetensors_header(path: Path, where: str) -> State:
    header: State = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            dtype = _DTYPES.get(part.get_dtype(), torch.float32)
            header[name] = torch.empty(part.get_shape(), dtype=dtype, device="meta")
    return header


def _torch_file(path: Path, where: str) -> State:
    if torchscript.is_archive(path):
        # Its code is compressed. Its tensors may not be.
        state: Any = torchscript.read(path)
    else:
        check_archive(path, where)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        state = found.get("state_dict", found) if isinstance(found, dict) else found
        if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
            raise UserError(
                f"{where}: holds no state dict (names and tensors); save the model's state_dict()."
            )
        for name, entry in state.items():
            if isinstance(entry, dict) and any(isinstance(tensor, Tensor) for tensor in entry.values()):
                raise UserError(
                    f"{where}: has its state dict in the entry `{name}`; save that alone: "
                    f"torch.save(torch.load(FILE)[{name!r}], NEW_FILE)."
                )
    return {name: check_dense(tensor, name, where) for name, tensor in state.items()}
