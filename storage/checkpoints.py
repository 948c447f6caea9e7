"""Training checkpoints, from which the stage `train` resumes: safetensors files, written atomically."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchsae.storage import sealed
from patchsae.storage.atomic import remove

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d+)\.safetensors")


def _step_of(path: Path) -> int:
    return int(path.stem.split("-")[1])


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
        return sorted(path for path in self.folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name))

    def save(self, step: int, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Writes a checkpoint as a sealed file. `values` must be JSON."""
        sealed.write(self.folder / f"step-{step:09d}.safetensors", arrays, values)
        for old in self._paths()[: -self.keep]:
            remove(old)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that matches its digest, or None."""
        for path in reversed(self._paths()):
            found = sealed.read(path)
            if found is not None:
                return Checkpoint(_step_of(path), found.arrays, found.values)
        return None

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint file, which is not read; None if there is none. Plans show it."""
        paths = self._paths()
        return _step_of(paths[-1]) if paths else None
