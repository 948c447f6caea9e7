"""Sealed files: arrays and JSON values in a safetensors file that also holds a digest of them.

Checkpoints and the scratch files that all parts share are sealed. A file that was damaged reads as None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from patchsae.storage.atomic import write_atomic
from patchsae.storage.files import read_regular
from patchsae.storage.keys import canonical_json, digest_buffers, parse_json


@dataclass(frozen=True)
class Sealed:
    """The content of a sealed file."""

    arrays: dict[str, np.ndarray]
    values: dict[str, Any]


def write(path: Path, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
    """Writes a sealed file atomically. `values` must be JSON."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = {"values": json.dumps(dict(values)), "digest": _digest(contiguous, values)}
    write_atomic(path, save(contiguous, metadata=metadata))


def read(path: Path) -> Sealed | None:
    """The content of a sealed file; None if there is no such file, or if it does not match its digest."""
    try:
        data = read_regular(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        arrays = load(data)
        values = parse_json(metadata["values"].encode())
        sound = _digest(arrays, values) == metadata["digest"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return None
    return Sealed(arrays, values) if sound else None


def _digest(arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> str:
    """sha256 over names, types, shapes and bytes of arrays, and over the values if there are any."""
    described: Any = {name: [str(arrays[name].dtype), list(arrays[name].shape)] for name in sorted(arrays)}
    buffers = [arrays[name].data.cast("B") for name in described if arrays[name].size]
    if values:
        described = [described, dict(values)]
    return digest_buffers([memoryview(canonical_json(described).encode()), *buffers])
