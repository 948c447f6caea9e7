"""What a stage is, and how one is executed: lock, resume, run, commit."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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


class RunTogether(Protocol):
    """Builds several artifacts of the same inputs in one pass: the summary of each, or why there is none."""

    def __call__(
        self, configs: Sequence[Any], inputs: Inputs, outs: Sequence[Builder], runtime: Runtime
    ) -> Sequence[Summary | UserError]: ...


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
    processes: int = 1
    """Processes that train one SAE, of this machine. On a CPU too, their number changes results by rounding."""
    torchrun: str = "--standalone"
    """Arguments of `torchrun` where `processes` is more than 1, such as the address at which machines meet."""
    members: int = 8
    """SAEs that are trained in one pass, at most: all of their weights and moments are in memory."""
    log: tuple[str, ...] = ()
    """Where training metrics go beside the table `training`."""
    reporter: Reporter = field(default_factory=Reporter)
    map_parts: MapParts = map_parts_here

    @classmethod
    def here(cls, **settings: Any) -> Runtime:
        """The best of this machine: CUDA where there is one. An accelerator outruns one decoding thread and gets
        a process per two cores; a forward pass on the CPU never does."""
        device = settings.pop("device", None) or ("cuda" if torch.cuda.is_available() else "cpu")
        workers = 0 if device == "cpu" else max(1, (os.cpu_count() or 2) // 2)
        return cls(**{"device": device, "workers": workers, **settings})

    def silent(self) -> Runtime:
        """The same without a bar."""
        return replace(self, reporter=Reporter())

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
            "processes": self.processes,
        }


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline: a typed config, a pure function, a folder.

    `version` is raised whenever the code changes what comes out. `run` reads `inputs` (role -> artifact) and
    writes below `out.path`. `run_part`, if there is one, does one independent part, so that parts can be
    mapped over processes. `run_together` builds several artifacts of the same inputs in one pass, for configs
    whose `together_key` is equal; each result is the same as built alone. `fingerprint` is a cheap sign of something outside the store the result depends on.
    `identified_by_content`: what is made from the artifact depends on its content (`Builder.identity`), not on
    how it came about. `predict_bytes` estimates the size of the result before anything is run.
    """

    name: str
    version: int
    run: Callable[[Any, Inputs, Builder, Runtime], Summary]
    run_part: Callable[[Any, Inputs, Builder, Runtime, int], None] | None = None
    run_together: RunTogether | None = None
    together_key: Callable[[Any], Hashable] | None = None
    fingerprint: Callable[[Any], str] | None = None
    identified_by_content: bool = False
    key_config: Callable[[Any], dict[str, Any]] = lambda config: config.key_config()
    predict_bytes: Callable[[Any, Mapping[str, Artifact | None]], int | None] | None = None


@dataclass(frozen=True)
class Assignment:
    """One artifact to build: what its stage is given, and its key with what went into that."""

    stage: Stage
    config: Config
    inputs: Inputs
    key_inputs: Mapping[str, str]
    key: str


def execute(store: Store, works: Sequence[Assignment], runtime: Runtime) -> list[Artifact]:
    """Builds one artifact, or several of a stage that can build them together.

    Waits for another process that is building one of them and takes its result. Raises UserError if one cannot be
    built, after the others are committed.
    """
    stage = works[0].stage
    with contextlib.ExitStack() as held:
        # In the order of their keys, so that no two processes wait for each other.
        for work in sorted(works, key=lambda work: work.key):
            held.enter_context(_locked(store, work))
        missing = [work for work in works if not store.is_usable(stage.name, work.key)]
        for upstream in {id(u): u for work in missing for u in work.inputs.values()}.values():
            fault = upstream.fault()
            if fault:
                raise UserError(f"{fault}; run {upstream.stage} again.")
        started = time.time()
        builders = [store.begin(store.at(stage.name, work.key)) for work in missing]
        with explaining_full_disk(store.root):
            failures = []
            for work, builder, found in zip(missing, builders, _run(missing, builders, runtime), strict=True):
                if isinstance(found, UserError):
                    failures.append(found)
                    continue
                seconds = {"started": started, "seconds": time.time() - started}
                store.commit(
                    builder,
                    stage.version,
                    stage.key_config(work.config),
                    work.key_inputs,
                    found,
                    {**provenance(), **runtime.describe(), **seconds},
                )
    if failures:
        raise failures[0]
    return [store.at(stage.name, work.key) for work in works]


def _run(
    works: Sequence[Assignment], builders: Sequence[Builder], runtime: Runtime
) -> Sequence[Summary | UserError]:
    if len(works) > 1:
        stage = works[0].stage
        assert stage.run_together is not None, f"{stage.name} builds one artifact at a time"
        return stage.run_together([work.config for work in works], works[0].inputs, builders, runtime)
    return [w.stage.run(w.config, w.inputs, out, runtime) for w, out in zip(works, builders, strict=True)]


def _locked(store: Store, work: Assignment) -> contextlib.AbstractContextManager[None]:
    def say_waiting() -> None:
        print(
            f"{work.stage.name} {work.key[:16]}: another process is building it; waiting for that one.",
            flush=True,
        )

    return store.locked(store.at(work.stage.name, work.key), say_waiting)


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
