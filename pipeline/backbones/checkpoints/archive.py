"""Reads the pickle of a torch file without executing anything in it, and maps its tensors into memory.

Such a file is a zip archive. `data.pkl` in it is a pickle, and `data/N` are the bytes of its tensors. `load_archive`
reads tensors, dictionaries and plain values. In place of every other class it takes what its caller says.
"""

from __future__ import annotations

import collections
import io
import mmap
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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

StandIn = Callable[[str, str], Any]
"""(module, name) of a class or function -> what is called in its place, or None if there is nothing."""


def load_archive(path: Path, stand_in: StandIn) -> Any:
    """What the pickle holds. `stand_in` is asked for every class that is neither a tensor's nor a dictionary's.

    Raises an error of `pipeline.core.tensors.BROKEN`, or OSError, if it is no such archive, or refers to a class
    that has no stand-in.
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
        return _Tensors(io.BytesIO(pickled), archive, data.removesuffix(".pkl"), mapped, stand_in).load()


def _check_memo(pickled: bytes) -> None:
    """Raises UnpicklingError if the pickle numbers an object higher than it can have objects.

    Python makes room for all lower numbers, so that ten bytes can take 32 GB of memory.
    """
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name in ("LONG_BINPUT", "PUT") and int(str(argument)) > len(pickled):
            raise pickle.UnpicklingError(f"numbers an object {argument}, and has {len(pickled):,} bytes")


class _Tensors(pickle.Unpickler):
    """Unpickles tensors and dictionaries, and `stand_in` for everything else."""

    def __init__(
        self, file: Any, archive: zipfile.ZipFile, folder: str, mapped: mmap.mmap, stand_in: StandIn
    ) -> None:
        super().__init__(file)
        self._stand_in = stand_in
        self._archive, self._folder, self._mapped = archive, folder, mapped

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (found := self._stand_in(module, name)) is not None:
            return found
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
