"""`Stage` and `PartStage`, which every stage is an instance of, and what they are given.

`pipeline.core.execute` builds artifacts with them.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.machine import fastest_device
from patchsae.pipeline.core.prediction import Prediction, Source, Upstreams
from patchsae.pipeline.core.progress import AddressedReporter, Reporter
from patchsae.pipeline.core.resources import Resources
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary
from patchsae.storage.scratch import ScratchArrays

Inputs = Mapping[str, Artifact]
Section = Literal["datasets", "backbones", "adapters", "saes", "evaluations"]

# How often parts are computed whose files turn out damaged right after they were written.
_ATTEMPTS = 3


class RunTogether(Protocol):
    """Builds several artifacts from the same inputs in one pass.

    Returns the summary of each artifact, or the error that says why it could not be built.
    """

    def __call__(
        self, configs: Sequence[Any], inputs: Inputs, outs: Sequence[Builder], runtime: Runtime
    ) -> Sequence[Summary | UserError]: ...


Within = Callable[[int, int, str], object]
"""Is told how far a part is: how many of how many smaller units are done (`Bar.within`)."""


def untold(done: int, total: int, unit: str) -> None:
    """The `Within` of a part whose progress nobody sees, such as one on a Dask worker."""


class PartWorker(Protocol):
    """Computes parts of one artifact, and keeps what they share (an SAE, a backbone) between parts."""

    def __call__(self, part: int, within: Within) -> Mapping[str, np.ndarray]:
        """Computes one part and returns its arrays by name."""


class MapParts(Protocol):
    """Computes the given parts of an artifact and notes them in its ledger, in this process or in others."""

    def __call__(
        self,
        stage: PartStage,
        config: Config,
        inputs: Inputs,
        out: Builder,
        runtime: Runtime,
        parts: Sequence[int],
    ) -> None: ...


def map_parts_here(
    stage: PartStage, config: Config, inputs: Inputs, out: Builder, runtime: Runtime, parts: Sequence[int]
) -> None:
    """Computes the parts one after another in this process."""
    if not parts:
        return
    worker = stage.worker(config, inputs, out, runtime)
    n_done = out.ledger.n_done()
    with runtime.reporter.bar(stage.name, n_done + len(parts), "parts", n_done) as bar:
        for part in parts:
            stage.do_part(worker, out, part, bar.within)
            bar.advance()


@dataclass(frozen=True, kw_only=True)
class Runtime(Resources):
    """The `Resources` a stage is given: the device is chosen, and `reporter` and `map_parts` are added.

    `address` is that of what is being built (`train/relu`); `building` fills it in.
    """

    device: str = "cpu"
    workers: int = 0
    address: str = ""
    reporter: Reporter = field(default_factory=Reporter)
    map_parts: MapParts = map_parts_here

    @classmethod
    def here(cls, resources: Resources, **others: Any) -> Runtime:
        """Fills in the settings that `resources` leaves open.

        The device is CUDA where there is one. An accelerator needs images faster than one thread decodes
        them, so it gets one decoding process per two cores. On a CPU one decoding thread is fast enough.
        """
        given = {one.name: getattr(resources, one.name) for one in fields(Resources)}
        device = given["device"] or fastest_device()
        workers = given["workers"]
        if workers is None:
            workers = 0 if device == "cpu" else max(1, (os.cpu_count() or 2) // 2)
        return cls(**{**given, "device": device, "workers": workers, **others})

    def building(self, stage: str, addresses: Sequence[str]) -> Runtime:
        """The same runtime for the artifacts of `stage` at these addresses, which its bars are labelled by."""
        others = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
        address = addresses[0] + others
        return replace(self, address=address, reporter=AddressedReporter(self.reporter, stage, address))

    def resources(self) -> Resources:
        """The settings alone, without what belongs to this process."""
        return Resources(**{one.name: getattr(self, one.name) for one in fields(Resources)})

    def describe(self) -> dict[str, Any]:
        """The settings that are recorded in an artifact's manifest."""
        on_cuda = self.device.startswith("cuda")
        return {
            "device": self.device,
            "device_name": torch.cuda.get_device_name() if on_cuda else platform.processor(),
            "threads": torch.get_num_threads(),
            "workers": self.workers,
            "batch_images": self.batch_images,
            "checkpoint_seconds": self.checkpoint_seconds,
            "processes": self.processes,
        }


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A step of the pipeline: a pure function from a config and input artifacts to an artifact.

    `version` must be raised whenever a change of the code changes the result. `section` is the section of the
    experiment that the stage's instances come from. `run` reads `inputs` (role -> artifact), writes with
    `out` and returns the summary. `run_together` builds several artifacts from the same inputs in one pass,
    for configs with an equal `together_key`; each result is the same as if it were built alone. `source`
    describes data outside the store on which the result depends. With `identified_by_content`, the keys of
    artifacts made from this one contain a digest of its content (`Builder.identity`) instead of its key.
    `predict` says what is known of the result before anything is run, and raises UserError for what `run` would
    refuse, with the same sentence, as far as that shows without weights or images. `changed_source` says what
    changed in the data outside the store since an artifact of the same data was made, if it can tell, and
    `changed_content` what differs between two artifacts of the stage for those that are made from them. `changes`
    says for a version what it does otherwise than the one before it; the plan shows it. `remarks` makes sentences
    for the user from the summary of an artifact, which are shown at the end of a run.
    """

    name: str
    version: int
    section: Section
    uses_gpu: bool = True
    description: str = ""
    run: Callable[[Any, Inputs, Builder, Runtime], Summary] | None = None
    run_together: RunTogether | None = None
    together_key: Callable[[Any], Hashable] | None = None
    source: Callable[[Any], Source] | None = None
    identified_by_content: bool = False
    predict: Callable[[Any, Upstreams], Prediction] | None = None
    changed_source: Callable[[Any, Artifact], str | None] | None = None
    changed_content: Callable[[Artifact, Artifact], str | None] | None = None
    changes: Mapping[int, str] = field(default_factory=dict)
    remarks: Callable[[Summary], Sequence[str]] | None = None

    def build(
        self, configs: Sequence[Any], inputs: Sequence[Inputs], outs: Sequence[Builder], runtime: Runtime
    ) -> Sequence[Summary | UserError]:
        """Builds the artifacts; returns each one's summary, or the error that says why it was not built."""
        if len(configs) > 1:
            assert self.run_together is not None, f"{self.name} builds one artifact at a time"
            return self.run_together(configs, inputs[0], outs, runtime)
        return [self.build_one(c, i, out, runtime) for c, i, out in zip(configs, inputs, outs, strict=True)]

    def build_one(self, config: Any, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
        assert self.run is not None
        return self.run(config, inputs, out, runtime)


@dataclass(frozen=True, kw_only=True)
class PartStage(Stage):
    """A stage whose work falls into independent parts, which any process may compute in any order.

    `prepare` writes what all parts need (with `out.scratch.share`) and returns the number of parts. `worker`
    opens what the parts share and returns a `PartWorker`. `merge` makes the result from the arrays of all
    parts, in the order of their numbers.
    """

    prepare: Callable[[Any, Inputs, Builder, Runtime], int]
    worker: Callable[[Any, Inputs, Builder, Runtime], PartWorker]
    merge: Callable[[Any, Inputs, Builder, Sequence[ScratchArrays], Runtime], Summary]

    def build_one(self, config: Any, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
        n_parts = self.prepare(config, inputs, out, runtime)
        parts = out.ledger.drop_unsound(n_parts)
        for _ in range(_ATTEMPTS):
            runtime.map_parts(self, config, inputs, out, runtime, parts)
            # What is merged is what was written: every file is compared with its digest.
            if not (parts := out.ledger.drop_unsound(n_parts)):
                return self.merge(
                    config, inputs, out, [out.scratch.part(part) for part in range(n_parts)], runtime
                )
        raise UserError(
            f"{out.path}: the files of its parts {', '.join(map(str, parts[:5]))} are not what was written; check "
            "the disk and run the same command again."
        )

    def do_part(self, worker: PartWorker, out: Builder, part: int, within: Within = untold) -> None:
        """Computes one part, writes its arrays and notes it in the ledger."""
        with naming(f"part {part}"):
            out.ledger.record(part, [out.scratch.write_part(part, worker(part, within))])


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Adds a note to any exception raised inside it, which says what was being worked on."""
    try:
        yield
    except Exception as error:
        # Where a part is computed in another process, the note was added there.
        if what not in getattr(error, "__notes__", ()):
            error.add_note(what)
        raise
