"""Reads the tensors of a TorchScript archive, without torch.jit and without executing its code.

Such an archive is a zip file. `data.pkl` in it is a pickle of the module's attributes, whose classes are named
`__torch__...`, and `data/N` are the bytes of its tensors. `_Tensors` reads the pickle and admits nothing else than
such classes, tensors, and dictionaries.
"""

from __future__ import annotations

import collections
import io
import mmap
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's models have as buffers."""
_MOST_PICKLED_BYTES = 64 * 2**20
"""Far more than the names of any model's tensors take."""
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


def is_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive. torch.save writes no `constants.pkl`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of the module by their names, mapped into memory.

    Raises an error of `pipeline.core.tensors.BROKEN`, or OSError, if it is not such an archive.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        named = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if not named:
            raise pickle.UnpicklingError("has no data.pkl")
        data = named[0]
        if archive.getinfo(data).file_size > _MOST_PICKLED_BYTES:
            raise pickle.UnpicklingError(f"{data} has {archive.getinfo(data).file_size:,} bytes")
        pickled = archive.read(data)
        _check_memo(pickled)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        module = _Tensors(io.BytesIO(pickled), archive, data.removesuffix(".pkl"), mapped).load()
    state = dict(_named(module, "", set()))
    for name in _NOT_WEIGHTS:
        state.pop(name, None)
    return state


def _check_memo(pickled: bytes) -> None:
    """Raises UnpicklingError if the pickle numbers an object higher than it can have objects.

    Python makes room for all lower numbers, so that ten bytes can take 32 GB of memory.
    """
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name in ("LONG_BINPUT", "PUT") and int(str(argument)) > len(pickled):
            raise pickle.UnpicklingError(f"numbers an object {argument}, and has {len(pickled):,} bytes")


class _Module:
    """Stands for any TorchScript class: takes the attributes that the pickle has for it."""

    def __setstate__(self, attributes: Any) -> None:
        self.attributes = attributes if isinstance(attributes, dict) else {}


class _Tensors(pickle.Unpickler):
    """Unpickles modules and tensors, and refuses everything else."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str, mapped: mmap.mmap) -> None:
        super().__init__(file)
        self._archive, self._folder, self._mapped = archive, folder, mapped

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle":
            # Functions that tag a list or a dictionary with the type of its elements.
            return lambda value, *_: value
        raise pickle.UnpicklingError(f"refers to {module}.{name}, which is neither a module nor a tensor")

    def persistent_load(self, reference: Any) -> Tensor:
        """All elements of a storage: ("storage", type, number, device, number of elements) -> [n]."""
        _, dtype, number, _, n_elements = reference
        entry = self._archive.getinfo(f"{self._folder}/{number}")
        if entry.compress_type != zipfile.ZIP_STORED or n_elements * dtype.itemsize > entry.file_size:
            raise pickle.UnpicklingError(f"storage {number} does not hold its {n_elements} elements")
        # 30 bytes, the name and an extra field of other length than in the directory precede the data.
        start = entry.header_offset
        lengths = self._mapped[start + 26 : start + 30]
        start += 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        if not n_elements:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(self._mapped, dtype=dtype, count=n_elements, offset=start)


def _tensor(
    storage: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> Tensor:
    # torch compares shape and strides with the length of the storage.
    return torch.as_strided(storage, shape, strides, offset)


def _named(module: Any, prefix: str, seen: set[int]) -> list[tuple[str, Tensor]]:
    """The tensors of a module and of the modules in it, with the names of a state dict. Each module counts once."""
    seen.add(id(module))
    found: list[tuple[str, Tensor]] = []
    for name, value in getattr(module, "attributes", {}).items():
        if isinstance(value, Tensor):
            found.append((prefix + name, value))
        elif isinstance(value, _Module) and id(value) not in seen:
            found += _named(value, f"{prefix}{name}.", seen)
    return found
