"""Training checkpoints: one safetensors file per step, written atomically, the newest readable one wins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from storage.artifacts import CHECKPOINTS
from storage.atomic import write_atomic
from storage.keys import digest_bytes


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of training before step `step` is taken."""

    step: int
    arrays: dict[str, np.ndarray]
    values: dict[str, Any]


class Checkpoints:
    """The checkpoints of the artifact being built in `root`; keeps the newest `keep`."""

    def __init__(self, root: Path, keep: int = 2) -> None:
        self.folder = root / CHECKPOINTS
        self.keep = keep

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, step: int, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """`values` must be JSON; `arrays` any shapes. A digest in the header covers the arrays."""
        payload = save_safetensors(dict(arrays))
        metadata = {"values": json.dumps(dict(values)), "digest": digest_bytes(payload)}
        data = save_safetensors(dict(arrays), metadata=metadata)
        write_atomic(self.folder / f"step-{step:09d}.safetensors", data)
        for old in self._paths()[: -self.keep]:
            old.unlink()

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None."""
        for path in reversed(self._paths()):
            checkpoint = self._load(path)
            if checkpoint is not None:
                return checkpoint
        return None

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint file, without reading it; for plans."""
        paths = self._paths()
        return int(paths[-1].stem.split("-")[1]) if paths else None

    @staticmethod
    def _load(path: Path) -> Checkpoint | None:
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata()
            arrays = load_safetensors(path.read_bytes())
            if digest_bytes(save_safetensors(arrays)) != metadata["digest"]:
                return None
            values = json.loads(metadata["values"])
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
            return None
        return Checkpoint(int(path.stem.split("-")[1]), arrays, values)
