"""What a stage is, and how one is executed: lock, resume, run, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.config import Config
from pipeline.progress import Reporter
from storage.artifacts import Artifact, Builder, Store, Summary
from storage.atomic import explaining_full_disk
from storage.errors import UserError

Inputs = Mapping[str, Artifact]

_PACKAGES = ("torch", "open_clip_torch", "zarr", "numpy", "polars", "pyarrow", "patchsae")


class MapParts(Protocol):
    """Runs a stage's parts, here or on other machines."""

    def __call__(
        self,
        stage: Stage,
        config: Config,
        inputs: Inputs,
        out: Builder,
        runtime: Runtime,
        parts: Sequence[int],
    ) -> None: ...


def map_parts_here(
    stage: Stage, config: Config, inputs: Inputs, out: Builder, runtime: Runtime, parts: Sequence[int]
) -> None:
    """One part after another in this process."""
    assert stage.run_part is not None
    n_done = out.ledger.n_done()
    with runtime.reporter.bar(stage.name, n_done + len(parts), "parts", n_done) as bar:
        for part in parts:
            stage.run_part(config, inputs, out, runtime, part)
            bar.advance()


@dataclass(frozen=True)
class Runtime:
    """What may differ between two runs without changing a byte of the result on a CPU: recorded, not hashed."""

    device: str = "cpu"
    workers: int = 0
    """Processes that decode images; 0 decodes in a thread of this process."""
    batch_images: int = 256
    """Images per forward pass on an accelerator. A CPU always works chunk by chunk."""
    checkpoint_seconds: float = 60.0
    """Training writes a checkpoint about this often."""
    reporter: Reporter = field(default_factory=Reporter)
    map_parts: MapParts = map_parts_here

    @classmethod
    def here(cls, **settings: Any) -> Runtime:
        """The best of this machine: CUDA where there is one. An accelerator outruns one decoding thread and gets
        a process per two cores; a forward pass on the CPU never does."""
        device = settings.pop("device", None) or ("cuda" if torch.cuda.is_available() else "cpu")
        workers = 0 if device == "cpu" else max(1, (os.cpu_count() or 2) // 2)
        return cls(**{"device": device, "workers": workers, **settings})

    def describe(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "device_name": torch.cuda.get_device_name()
            if self.device.startswith("cuda")
            else platform.processor(),
            "threads": torch.get_num_threads(),
            "workers": self.workers,
            "batch_images": self.batch_images,
            "checkpoint_seconds": self.checkpoint_seconds,
        }


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline: a typed config, a pure function, a folder.

    `version` is raised whenever the code changes what comes out. `run` reads `inputs` (role -> artifact) and
    writes below `out.path`. `run_part`, if there is one, does one independent part, so that parts can be
    mapped over processes. `fingerprint` is a cheap sign of something outside the store the result depends on.
    `identified_by_content`: what is made from the artifact depends on its content (`Builder.identity`), not on
    how it came about. `predict_bytes` estimates the size of the result before anything is run.
    """

    name: str
    version: int
    run: Callable[[Any, Inputs, Builder, Runtime], Summary]
    run_part: Callable[[Any, Inputs, Builder, Runtime, int], None] | None = None
    fingerprint: Callable[[Any], str] | None = None
    identified_by_content: bool = False
    key_config: Callable[[Any], dict[str, Any]] = lambda config: config.key_config()
    predict_bytes: Callable[[Any, Mapping[str, Artifact | None]], int | None] | None = None


def execute(
    store: Store,
    stage: Stage,
    config: Config,
    inputs: Inputs,
    key_inputs: Mapping[str, str],
    key: str,
    runtime: Runtime,
) -> Artifact:
    """Builds one artifact, or waits for the process that is building it and takes its result."""

    def say_waiting() -> None:
        print(f"{stage.name} {key[:16]}: another process is building it; waiting for that one.", flush=True)

    artifact = store.at(stage.name, key)
    with store.locked(artifact, say_waiting):
        if store.is_usable(stage.name, key):
            return store.at(stage.name, key)
        for upstream in inputs.values():
            fault = upstream.fault()
            if fault:
                raise UserError(f"{fault}; run {upstream.stage} again.")
        started = time.time()
        builder = store.begin(artifact)
        with explaining_full_disk(store.root):
            summary = stage.run(config, inputs, builder, runtime)
            return store.commit(
                builder,
                stage.version,
                stage.key_config(config),
                key_inputs,
                summary,
                {**provenance(), **runtime.describe(), "started": started, "seconds": time.time() - started},
            )


def provenance() -> dict[str, Any]:
    """What produced an artifact, as far as it is not in the key."""
    return {
        "git": _git_revision(),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _git_revision() -> str | None:
    folder = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
