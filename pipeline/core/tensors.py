"""Reads tensors of artifacts, and checks torch files from others: that they take no more memory than they have bytes.

torch itself executes nothing in them (`weights_only=True`), and it compares each storage with what the file
holds.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from patchsae.pipeline.core.text import first_line
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError

BROKEN = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    NotImplementedError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    struct.error,
)
"""What `check_archive` and `torch.load` raise for a file that is broken, beside OSError."""


_REFERS = re.compile(r"Unsupported global: GLOBAL (\S+)")


def why_unreadable(error: Exception) -> str:
    """What is wrong with a file for which one of `BROKEN` was raised, as a phrase.

    torch's own messages run over many lines, and advise to execute what the file holds.
    """
    if found := _REFERS.search(str(error)):
        return f"it holds an object of {found[1]}, and only tensors are read"
    if str(error).startswith("Weights only load failed"):
        return "it holds something else than tensors, and only they are read"
    if isinstance(error, EOFError | LookupError | zipfile.BadZipFile):
        return "torch did not write it, or not to its end"
    return first_line(error)


def check_archive(source: Path | BinaryIO, where: str) -> None:
    """Raises UserError, naming `where`, if a torch file is an archive that unpacks to more bytes than it has.

    `torch.save` never compresses. But torch reads compressed entries, so that 40 kB can become 40 MB, and
    entries that share their bytes. Raises OSError if the file cannot be read, and one of `BROKEN` if the
    archive is not sound.
    """
    file = source.open("rb") if isinstance(source, Path) else source
    try:
        if file.read(4) == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                n_unpacked = sum(entry.file_size for entry in archive.infolist())
            if n_unpacked > file.seek(0, 2):
                raise UserError(
                    f"{where}: unpacks to {n_unpacked:,} bytes and has {file.tell():,}, while torch.save "
                    "compresses nothing; get a file that torch.save wrote."
                )
    finally:
        if isinstance(source, Path):
            file.close()
        else:
            file.seek(0)


def check_dense(found: Any, name: str, where: str) -> Tensor:
    """`found`, if it is a tensor of plain numbers on the CPU, each of which the file holds.

    Raises UserError, naming `where` and `name`, if it is anything else. An expanded tensor can claim any
    shape and hold one number, and takes the memory of its shape once it is converted; so can a sparse tensor.
    """
    if not isinstance(found, Tensor):
        raise UserError(
            f"{where}: `{name}` is of type {type(found).__name__}, not a tensor; save the state dict again."
        )
    is_plain = (
        found.layout is torch.strided
        and found.device.type == "cpu"
        and not (found.is_quantized or found.is_nested or found.is_complex())
    )
    if not is_plain:
        raise UserError(f"{where}: `{name}` is no dense tensor of real numbers; save it again as one.")
    if found.numel() * found.element_size() > found.untyped_storage().nbytes():
        raise UserError(
            f"{where}: `{name}` claims the shape {tuple(found.shape)} and holds "
            f"{found.untyped_storage().nbytes():,} bytes; save a contiguous copy of it."
        )
    return found


def map_tensors(artifact: Artifact, name: str) -> dict[str, Tensor]:
    """As `read_tensors`, but mapped: only what is used of them is in memory. The file is read once, for its digest."""
    path = artifact.checked(name)
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise UserError(f"{path}: is not a readable safetensors file ({error}).") from None


def read_tensors(artifact: Artifact, name: str) -> dict[str, Tensor]:
    """The tensors of the safetensors file `name` of an artifact. Raises UserError if it cannot be read."""
    try:
        return load(artifact.read(name))
    except SafetensorError as error:
        raise UserError(f"{artifact.path}: {name} is not a readable safetensors file ({error}).") from None
