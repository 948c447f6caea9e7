"""Parts of a stage mapped over Dask: one part is one task, written and noted in the ledger by the worker."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import distributed
import torch
from prefect import flow, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.futures import as_completed
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_dask.task_runners import DaskTaskRunner

from flows.stage_task import is_environment
from pipeline.config import Config
from pipeline.progress import Reporter
from pipeline.stage import Inputs, Runtime, Stage, map_parts_here
from storage.artifacts import Artifact, Builder
from storage.errors import UserError

# Ctrl-C goes to every process of a terminal: workers leave it to the process that stops them.
_WORKER_SETUP = """
import logging, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
logging.getLogger("distributed").setLevel(logging.ERROR)
"""


@dataclass(frozen=True)
class PartJob:
    """What a worker needs to do any part of one artifact: names and references only, no data.

    `function` is `module:name` of the stage's `run_part`. `threads` is 0 where the worker decides.
    """

    function: str
    config: Config
    inputs: dict[str, Artifact]
    out: Artifact
    device: str
    batch_images: int
    threads: int

    def run(self, part: int) -> None:
        module, _, name = self.function.partition(":")
        if self.threads:
            torch.set_num_threads(self.threads)
        runtime = Runtime(device=self.device, batch_images=self.batch_images)
        run_part = getattr(importlib.import_module(module), name)
        run_part(self.config, self.inputs, Builder(self.out), runtime, part)


@task(
    name="part",
    task_run_name="{part}",
    # The ledger knows which parts are done.
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=is_environment,
)
def run_part(job: PartJob, part: int) -> int:
    """Does one part and returns its number."""
    job.run(part)
    return part


@flow(name="parts", flow_run_name="{stage}", validate_parameters=False, persist_result=False)
def run_parts(stage: str, key: str, parts: list[int], n_done: int, job: PartJob, reporter: Reporter) -> None:
    """Maps the missing parts of one artifact over the workers. Raises what the first failing part raised."""
    futures = run_part.map(unmapped(job), parts)
    with reporter.bar(stage, n_done + len(parts), "parts", n_done) as bar:
        for future in as_completed(futures):
            try:
                future.result()
            except distributed.KilledWorker as error:
                raise UserError(
                    f"{stage}: Dask workers died at it, most often for want of memory ({error}); run again with "
                    "--dask none, or on workers with more memory; finished parts are kept."
                ) from None
            bar.advance()


class DaskParts:
    """A stage's `map_parts` on Dask.

    `address` is `local`, `none`, or that of a scheduler. The local cluster has one process per core (one
    with CUDA), of one thread each; it is started for the first stage with two parts or more to do and kept
    for the next ones. Fewer parts, or a single core, are not worth a cluster: they are done in this process.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._cluster: distributed.LocalCluster | None = None

    def __enter__(self) -> DaskParts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._cluster is not None:
            self._cluster.close()

    def __call__(
        self,
        stage: Stage,
        config: Config,
        inputs: Inputs,
        out: Builder,
        runtime: Runtime,
        parts: Sequence[int],
    ) -> None:
        assert stage.run_part is not None
        n_workers = 1 if runtime.device.startswith("cuda") else os.cpu_count() or 1
        is_local = self.address == "local"
        if self.address == "none" or (is_local and min(len(parts), n_workers) < 2):
            map_parts_here(stage, config, inputs, out, runtime, parts)
            return
        job = PartJob(
            f"{stage.run_part.__module__}:{stage.run_part.__qualname__}",
            config,
            {role: _reference(artifact) for role, artifact in inputs.items()},
            _reference(out.artifact),
            runtime.device,
            runtime.batch_images,
            threads=1 if is_local else 0,
        )
        address = self._local_address(n_workers) if is_local else self.address
        mapped = run_parts.with_options(
            flow_run_name=f"{stage.name} {out.key[:16]}",
            task_runner=DaskTaskRunner(address=address),  # type: ignore[arg-type]
        )
        # Without this each worker would start a server of its own where none is configured.
        url = str(get_client(sync_client=True).api_url)
        with temporary_settings({PREFECT_API_URL: url}):
            mapped(
                stage=stage.name,
                key=out.key,
                parts=list(parts),
                n_done=out.ledger.n_done(),
                job=job,
                reporter=runtime.reporter,
            )

    def _local_address(self, n_workers: int) -> str:
        if self._cluster is None:
            logging.getLogger("distributed").setLevel(logging.ERROR)
            self._cluster = distributed.LocalCluster(
                n_workers=n_workers,
                threads_per_worker=1,
                # A part holds no Dask data, so there is nothing for Dask to spill or to pause for.
                memory_limit=0,
                dashboard_address=":0",
                preload=[_WORKER_SETUP],
            )
        return str(self._cluster.scheduler_address)


def _reference(artifact: Artifact) -> Artifact:
    """The artifact without its manifest, which may be large and which the worker reads again."""
    return Artifact(artifact.stage, artifact.key, artifact.path)
