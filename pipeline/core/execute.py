"""Executing a stage: lock, resume, run, commit. `pipeline.experiment.run` calls it for every group of nodes."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage, naming
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.atomic import explaining_full_disk
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary
from patchsae.storage.store import Store

_PACKAGES = ("torch", "open_clip_torch", "zarr", "numpy", "polars", "pyarrow", "patchsae")


@dataclass(frozen=True)
class Assignment:
    """One artifact to build: its stage, config and inputs, and its key.

    `key_inputs` maps a role to the identity that went into the key. `address` is the node's address in the
    experiment. `location` says where the data outside the store lie. `again`: build it even if it is
    committed.
    """

    stage: Stage
    address: str
    config: Config
    inputs: Inputs
    key_inputs: Mapping[str, str]
    key: str
    location: Mapping[str, str] = field(default_factory=dict)
    again: bool = False


def execute(
    store: Store, works: Sequence[Assignment], runtime: Runtime, given_up: set[str] | None = None
) -> list[Artifact]:
    """Builds one artifact, or several of one stage that are built in one pass, and returns them.

    If another process is building one of them, this one waits and uses that result. Raises UserError if an
    artifact cannot be built, after the others are committed.

    `given_up` holds the keys of artifacts that were deleted to be built again. A caller that tries again passes
    the same set again, so that the second attempt resumes where the first one failed.
    """
    stage = works[0].stage
    given_up = set() if given_up is None else given_up
    called = ", ".join(f"{work.address} {work.key[:16]}" for work in works)
    with contextlib.ExitStack() as held:
        held.enter_context(naming(f"building {called}"))
        # Every process takes the locks in the order of the keys, so that no two processes wait for each
        # other.
        for work in sorted(works, key=lambda work: work.key):
            held.enter_context(_locked(store, work))
        missing = [
            work
            for work in works
            if (work.again and work.key not in given_up) or not store.is_usable(stage.name, work.key)
        ]
        for work in works:
            if work not in missing:
                store.tidy(store.at(stage.name, work.key))
        for upstream in {id(u): u for work in missing for u in work.inputs.values()}.values():
            fault = upstream.fault()
            if fault:
                raise UserError(f"{fault}; run {upstream.stage} again.")
        started = time.time()
        # An artifact that is built again is deleted only here, after all checks, right before its
        # replacement.
        for work in missing:
            if work.again and work.key not in given_up:
                store.discard(store.at(stage.name, work.key))
                given_up.add(work.key)
        builders = [store.begin(store.at(stage.name, work.key)) for work in missing]
        with explaining_full_disk(store.root):
            found = _build(missing, builders, runtime) if missing else []
            failures = []
            for work, builder, summary in zip(missing, builders, found, strict=True):
                if isinstance(summary, UserError):
                    failures.append(summary)
                    continue
                seconds = {"started": started, "seconds": time.time() - started}
                source = {"source": dict(work.location)} if work.location else {}
                store.commit(
                    builder,
                    stage.version,
                    work.config.key_config(),
                    work.key_inputs,
                    summary,
                    {**provenance(), **runtime.describe(), **seconds, **source},
                )
        if failures:
            raise failures[0]
    return [store.at(stage.name, work.key) for work in works]


def _build(
    works: Sequence[Assignment], builders: Sequence[Builder], runtime: Runtime
) -> Sequence[Summary | UserError]:
    configs, inputs = [work.config for work in works], [work.inputs for work in works]
    return works[0].stage.build(configs, inputs, builders, runtime)


def _locked(store: Store, work: Assignment) -> contextlib.AbstractContextManager[None]:
    def say_waiting() -> None:
        print(
            f"{work.address} {work.key[:16]}: another process is building it; waiting for that one.",
            flush=True,
        )

    return store.locked(store.at(work.stage.name, work.key), say_waiting)


@cache
def provenance() -> Mapping[str, Any]:
    """The git revision, host and versions that go into a manifest; none of them is in a key."""
    return {
        "git": _git_revision(),
        "host": platform.node(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def _git_revision() -> str | None:
    folder = Path(__file__).resolve().parent
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
