"""Executing a stage: lock, resume, run, commit. `pipeline.experiment.run` calls it for every group of nodes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.devices import devices_of, fence
from patchsae.pipeline.core.provenance import MADE_FROM, changed_inputs, contents, provenance
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage, naming
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.atomic import explaining_full_disk
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary
from patchsae.storage.store import Store

_LOG = logging.getLogger("patchsae")


@dataclass(frozen=True)
class Assignment:
    """One artifact to build: its stage, config and inputs, and its key.

    `key_inputs` maps a role to the identity that went into the key. `address` is the node's address in the
    experiment. `location` says where the data outside the store lie. `again`: build it even if it is
    committed. `experiment` is the name under which the run is recorded.
    """

    stage: Stage
    address: str
    config: Config
    inputs: Inputs
    key_inputs: Mapping[str, str]
    key: str
    location: Mapping[str, str] = field(default_factory=dict)
    again: bool = False
    experiment: str = ""


def execute(
    store: Store, works: Sequence[Assignment], runtime: Runtime, rebuilt: set[str] | None = None
) -> list[Artifact]:
    """Builds one artifact, or several of one stage that are built in one pass, and returns them.

    If another process is building one of them, this one waits and uses that result. The inputs cannot change
    meanwhile. Raises UserError if an artifact cannot be built, after the others are committed.

    `rebuilt` receives the keys of artifacts that were built again. A caller that tries again passes the same
    set again, so that the second attempt does not build them a second time.
    """
    stage = works[0].stage
    rebuilt = set() if rebuilt is None else rebuilt
    called = ", ".join(f"{work.address} {work.key[:16]}" for work in works)
    with contextlib.ExitStack() as held:
        held.enter_context(naming(f"building {called}"))
        # Every process takes the locks in the order of the keys, so that no two processes wait for each
        # other. Locks of inputs come after them, since inputs are of earlier stages.
        for work in sorted(works, key=lambda work: work.key):
            held.enter_context(_locked(store, work))
            artifact = store.at(stage.name, work.key)
            # A rebuild that was finished and interrupted while it waited for readers of the old one.
            if store.settle(artifact, _saying(work, "the old one is being read by another process")):
                rebuilt.add(work.key)
        usable = {work.key for work in works if store.is_usable(stage.name, work.key)}
        missing = [
            work
            for work in works
            if (work.again and work.key not in rebuilt)
            or work.key not in usable
            or changed_inputs(store.at(stage.name, work.key), work.inputs)
        ]
        for work in works:
            if work not in missing:
                store.tidy(store.at(stage.name, work.key))
        held.enter_context(store.reading(u for work in missing for u in work.inputs.values()))
        for work in missing:
            _check_inputs(work)
        builders = []
        for work in missing:
            artifact = store.at(stage.name, work.key)
            beside = work.key in usable or (work.again and artifact.is_committed)
            builder = store.begin(artifact, beside, _saying(work, "is being read by another process"))
            builder.resume_from(contents(work.inputs))
            builders.append(builder)
        with explaining_full_disk(store.root):
            started, summaries = _build(missing, builders, runtime) if missing else (0.0, [])
            failures = []
            for work, builder, summary in zip(missing, builders, summaries, strict=True):
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
                    {**provenance(), **runtime.describe(), **seconds, **source, MADE_FROM: builder.made_from},
                    _saying(work, "the old one is being read by another process"),
                )
                rebuilt.add(work.key)
        if failures:
            raise failures[0]
    return [store.at(stage.name, work.key) for work in works]


def _check_inputs(work: Assignment) -> None:
    """Raises UserError unless every input is whole, and is the one that the key was computed with."""
    for role, upstream in work.inputs.items():
        fault = upstream.fault()
        if fault:
            raise UserError(fault if fault.endswith(".") else f"{fault}; run {upstream.stage} again.")
        if upstream.identity != work.key_inputs[role]:
            raise UserError(
                f"{work.address}: its input {upstream.path} was built again with another content meanwhile; run "
                "the same command again."
            )


def _build(
    works: Sequence[Assignment], builders: Sequence[Builder], runtime: Runtime
) -> tuple[float, Sequence[Summary | UserError]]:
    """Builds the artifacts, on a GPU alone. Returns when that began, and each one's summary or error."""
    configs, inputs, stage = [work.config for work in works], [work.inputs for work in works], works[0].stage
    addressed = runtime.building(stage.name, [work.address for work in works])
    what = f"{addressed.address} of {works[0].experiment or 'an experiment'}"
    # Artifacts are committed outside of the fence: that may wait for a process which waits for the device.
    with fence(devices_of(runtime) if stage.uses_gpu else [], what, _saying_device(addressed.address)):
        return time.time(), stage.build(configs, inputs, builders, addressed)


def _saying_device(address: str) -> Callable[[str], None]:
    return lambda device: _LOG.warning("%s: waits for %s.", address, device)


def _locked(store: Store, work: Assignment) -> contextlib.AbstractContextManager[None]:
    waiting = _saying(work, "another process is building it")
    return store.building(store.at(work.stage.name, work.key), waiting)


def _saying(work: Assignment, why: str) -> Callable[[], None]:
    """A function that says why this process waits."""
    return lambda: _LOG.warning("%s %s: %s; waiting for that one.", work.address, work.key[:16], why)
