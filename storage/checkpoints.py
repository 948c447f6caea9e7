"""Training checkpoints, from which the stage `train` resumes: safetensors files, written atomically."""

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
from patchsae.storage.keys import canonical_json, digest_buffers

FOLDER = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of training right before step `step`."""

    step: int
    arrays: dict[str, np.ndarray]
    values: dict[str, Any]


class Checkpoints:
    """The checkpoints of the artifact that is built in `root`. Only the newest `keep` files are kept."""

    def __init__(self, root: Path, keep: int = 2) -> None:
        self.folder = root / FOLDER
        self.keep = keep

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, step: int, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Writes a checkpoint, with a digest of the arrays in the file's header. `values` must be JSON."""
        metadata = {"values": json.dumps(dict(values)), "digest": _digest(arrays)}
        write_atomic(self.folder / f"step-{step:09d}.safetensors", save(dict(arrays), metadata=metadata))
        for old in self._paths()[: -self.keep]:
            old.unlink()

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read and whose arrays match their digest, or None."""
        for path in reversed(self._paths()):
            checkpoint = self._load(path)
            if checkpoint is not None:
                return checkpoint
        return None

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint file, which is not read; None if there is none. Plans show it."""
        paths = self._paths()
        return int(paths[-1].stem.split("-")[1]) if paths else None

    @staticmethod
    def _load(path: Path) -> Checkpoint | None:
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata()
            arrays = load(path.read_bytes())
            if _digest(arrays) != metadata["digest"]:
                return None
            values = json.loads(metadata["values"])
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
            return None
        return Checkpoint(int(path.stem.split("-")[1]), arrays, values)


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, types, shapes and bytes of arrays; contiguous arrays are not copied."""
    shapes = {name: [str(arrays[name].dtype), list(arrays[name].shape)] for name in sorted(arrays)}
    buffers = [np.ascontiguousarray(arrays[name]).data.cast("B") for name in shapes if arrays[name].size]
    return digest_buffers([memoryview(canonical_json(shapes).encode()), *buffers])
