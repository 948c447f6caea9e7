"""The job file, which tells the ranks of `torchrun` what to train.

`pipeline.training.torchrun` writes it and `pipeline.training.worker` reads it. It is JSON, so reading it
executes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from patchsae.pipeline.core import registry
from patchsae.pipeline.core.resources import Resources
from patchsae.pipeline.core.stage import Inputs
from patchsae.pipeline.training import objectives
from patchsae.pipeline.training.objective import TrainedSaeConfig
from patchsae.storage.artifacts import Artifact, Builder


class _ArtifactRef(BaseModel):
    stage: str
    key: str
    path: Path

    @classmethod
    def of(cls, artifact: Artifact) -> _ArtifactRef:
        return cls(stage=artifact.stage, key=artifact.key, path=artifact.path)

    def artifact(self) -> Artifact:
        return Artifact(self.stage, self.key, self.path)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    configs: list[dict[str, Any]]
    inputs: dict[str, _ArtifactRef]
    outs: list[_ArtifactRef]
    resources: Resources
    held: Path
    address: str = "train"


@dataclass(frozen=True)
class Job:
    """What the ranks train: configs with their inputs and artifacts, and the settings of the run."""

    configs: Sequence[TrainedSaeConfig]
    inputs: Inputs
    outs: Sequence[Builder]
    resources: Resources
    held: Path
    """A file that the launching process keeps locked while it lives. Without the lock, the ranks end."""
    address: str = "train"
    """The address of what is trained, which the progress bar is labelled by."""

    def to_json(self) -> bytes:
        file = _File(
            configs=[config.model_dump(mode="json") for config in self.configs],
            inputs={role: _ArtifactRef.of(artifact) for role, artifact in self.inputs.items()},
            outs=[_ArtifactRef.of(out.artifact) for out in self.outs],
            resources=self.resources,
            held=self.held,
            address=self.address,
        )
        return file.model_dump_json(indent=1).encode()

    @classmethod
    def of_json(cls, data: bytes) -> Job:
        file = _File.model_validate_json(data)
        kinds = registry.variants(objectives, TrainedSaeConfig)
        return cls(
            configs=[kinds[config["kind"]].model_validate(config) for config in file.configs],
            inputs={role: ref.artifact() for role, ref in file.inputs.items()},
            outs=[Builder(ref.artifact()) for ref in file.outs],
            resources=file.resources,
            held=file.held,
            address=file.address,
        )
