"""`DaskParts`, with which the flows compute the parts of a stage on Dask workers.

One part is one Prefect task. The worker writes the part's arrays and notes the part in the ledger.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import TracebackType
from typing import Any

import dask
import distributed
import torch
from prefect import flow, task, unmapped
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.futures import as_completed
from prefect.runtime import task_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_dask.task_runners import DaskTaskRunner

from patchsae.flows.run_folder import run_folder
from patchsae.flows.run_log import PART_TASK, one_line, plain_log, run_logger
from patchsae.flows.stage_task import is_environment
from patchsae.pipeline.core.config import Config
from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.resources import Resources
from patchsae.pipeline.core.stage import Inputs, PartStage, PartWorker, Runtime, map_parts_here, naming
from patchsae.pipeline.experiment.kinds import STAGES
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.errors import UserError

_HELD = "patchsae_part_worker"
# A terminal sends SIGINT and SIGHUP to all its processes, and a cluster's scheduler SIGTERM to all
# processes of a job. The main process stops its workers in order, so they wait for that: SIGTERM gives it
# half a minute. Workers start with these signals blocked, since importing takes seconds. Dask itself ends
# them when their main process is gone. A heartbeat that is late on a busy machine is a traceback to Dask, and
# mends itself, so workers do not say it; the error of a part comes with its future.
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_WORKER_SETUP = """
import logging, signal
def dask_setup(worker):
    worker.http_server.stop()
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(30))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
logging.getLogger("distributed").setLevel(logging.CRITICAL)
"""
# Dask always starts an HTTP server, with logs and call stacks. `dask_setup` closes it.
_SCHEDULER_SETUP = """
def dask_setup(scheduler):
    scheduler.http_server.stop()
"""
_STARTUP_SECONDS = 180
# What `run_parts` calls when Ctrl-C or a signal ends it. As a parameter Prefect would send it to the workers.
_at_interrupt: ContextVar[Callable[[], None]] = ContextVar("at_interrupt")


@dataclass(frozen=True)
class PartJob:
    """What a worker needs to compute any part of one artifact. It holds names and references but no data.

    `token` is unique to one mapping of parts. `threads` is the number of torch's threads, or 0 to leave the
    worker's setting.
    """

    token: str
    stage: str
    address: str
    config: Config
    inputs: dict[str, Artifact]
    out: Artifact
    resources: Resources
    threads: int

    def run(self, part: int) -> None:
        if self.threads:
            torch.set_num_threads(self.threads)
        stage, out = self._stage(), Builder(self.out)
        with naming(f"building {self.address} {self.out.key[:16]}"):
            stage.do_part(self._worker(stage, out), out, part)

    def _stage(self) -> PartStage:
        stage = STAGES[self.stage]
        assert isinstance(stage, PartStage)
        return stage

    def _worker(self, stage: PartStage, out: Builder) -> PartWorker:
        """The `PartWorker` that this Dask worker keeps while it computes parts of this job.

        The job's token tells it, not the artifact's key: an artifact that is built again, or one of another store,
        may have the same key and other inputs.
        """
        dask_worker = distributed.get_worker()
        held = getattr(dask_worker, _HELD, None)
        if held is None or held[0] != self.token:
            # The one of the last artifact is released before this one is loaded, so that both are never in
            # memory.
            setattr(dask_worker, _HELD, None)
            runtime = Runtime.here(self.resources)
            held = (self.token, stage.worker(self.config, self.inputs, out, runtime))
            setattr(dask_worker, _HELD, held)
        worker: PartWorker = held[1]
        return worker


def _part_name() -> str:
    """`statistics/statistics part 3`, from the parameters of the task run."""
    parameters = task_run.parameters
    return f"{parameters['job'].address} part {parameters['part']}"


@task(
    name=PART_TASK,
    task_run_name=_part_name,
    # Prefect need not remember finished parts, since the ledger does.
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=5,
    retry_condition_fn=is_environment,
)
def run_part(job: PartJob, part: int) -> int:
    """Computes one part and returns its number."""
    plain_log()
    job.run(part)
    return part


@flow(name="parts", validate_parameters=False, persist_result=False)
def run_parts(
    address: str, key: str, parts: list[int], n_done: int, job: PartJob, reporter: Reporter
) -> None:
    """Maps the missing parts of one artifact over the workers. Raises the error of the first failing part."""
    futures = run_part.map(unmapped(job), parts)
    part_of = {future.task_run_id: part for future, part in zip(futures, parts, strict=True)}
    with _calling_at_interrupt(), reporter.bar(job.stage, n_done + len(parts), "parts", n_done) as bar:
        bar.advance(0)
        for future in as_completed(futures):
            part = part_of[future.task_run_id]
            try:
                future.result()
            except distributed.KilledWorker as error:
                raise UserError(
                    f"{address}: Dask workers died at part {part}, most often for want of memory ({error}); run "
                    "again with --dask none, or on workers with more memory; finished parts are kept."
                ) from None
            except Exception as error:
                run_logger().error(f"{address} {key[:16]}: part {part} failed: {one_line(error)}")
                raise
            bar.advance()


@contextlib.contextmanager
def _calling_at_interrupt() -> Iterator[None]:
    """Calls `_at_interrupt` if an interrupt ends the `with` block. Afterwards Prefect waits for the tasks."""
    try:
        yield
    except BaseException as error:
        if _is_interrupt(type(error)):
            _at_interrupt.get()()
        raise


def _is_interrupt(kind: type[BaseException] | None) -> bool:
    """Whether Ctrl-C or a signal raised it, for which Prefect has an exception of its own."""
    return kind is not None and not issubclass(kind, Exception)


def _release(dask_worker: distributed.Worker) -> None:
    """Frees what a Dask worker keeps between parts (an SAE, a backbone). Dask fills in the worker."""
    setattr(dask_worker, _HELD, None)


def _release_workers(address: str, security: distributed.Security | None) -> None:
    with distributed.Client(address, security=security, set_as_default=False) as client:
        client.run(_release)


class DaskParts:
    """Computes the parts of stages on Dask, as a `Runtime`'s `map_parts`.

    `address` is `local`, `none` (this process), or the address of a scheduler. The local cluster has one
    process of one thread per core. It is started for the first stage with two parts or more to do, and kept
    for the stages after it. With CUDA, with a single core, or with a single part, `local` computes the parts
    in this process.

    A scheduler executes whatever it is sent, and every user of this machine can reach its port. So the
    processes of the local cluster prove to each other, by a certificate that only they have, that they
    belong together.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._cluster: distributed.LocalCluster | None = None
        self._nannies: list[distributed.Nanny] = []
        self._held = contextlib.ExitStack()

    def __enter__(self) -> DaskParts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if _is_interrupt(kind):
            self._kill_workers()
        self._held.close()

    def _kill_workers(self) -> None:
        """Ends the local workers in the middle of their parts, which count only once they are in the ledger."""
        # What Dask then has to say is no news to the user.
        for name in ("distributed", "tornado.application"):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        for nanny in self._nannies:
            # Otherwise it starts another worker.
            nanny.close_gracefully("interrupted")
            if nanny.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(nanny.pid, signal.SIGKILL)

    def __call__(
        self,
        stage: PartStage,
        config: Config,
        inputs: Inputs,
        out: Builder,
        runtime: Runtime,
        parts: Sequence[int],
    ) -> None:
        n_workers = 1 if runtime.device.startswith("cuda") else os.cpu_count() or 1
        is_local = self.address == "local"
        if self.address == "none" or (is_local and min(len(parts), n_workers) < 2):
            map_parts_here(stage, config, inputs, out, runtime, parts)
            return
        job = PartJob(
            uuid.uuid4().hex,
            stage.name,
            runtime.address or stage.name,
            config,
            {role: _reference(artifact) for role, artifact in inputs.items()},
            _reference(out.artifact),
            runtime.resources(),
            threads=1 if is_local else 0,
        )
        address, security = (
            self._local_cluster(n_workers, runtime.reporter) if is_local else (self.address, None)
        )
        runner: Any = DaskTaskRunner(address=address, client_kwargs={"security": security})
        mapped = run_parts.with_options(
            flow_run_name=f"{job.address} parts {parts_text(parts)}",
            task_runner=runner,
        )
        # Workers are told the server's address, since without one each worker would start a server of its
        # own.
        url = str(get_client(sync_client=True).api_url)
        with temporary_settings({PREFECT_API_URL: url}):
            before = _at_interrupt.set(self._kill_workers)
            try:
                mapped(
                    address=job.address,
                    key=out.key,
                    parts=list(parts),
                    n_done=out.ledger.n_done(),
                    job=job,
                    reporter=runtime.reporter,
                )
            finally:
                _at_interrupt.reset(before)
                if not _is_interrupt(sys.exc_info()[0]):
                    _release_workers(address, security)
                elif not is_local:
                    # A connection that is lost must not hide the interrupt: the stage would be tried again.
                    with contextlib.suppress(OSError):
                        _release_workers(address, security)

    def _local_cluster(self, n_workers: int, reporter: Reporter) -> tuple[str, distributed.Security]:
        """The address of the local cluster, and what its clients prove.

        It is started if there is none. That takes seconds, on a busy machine minutes, so it has a bar of its own.
        """
        if self._cluster is None:
            with reporter.bar("start of Dask", n_workers, "workers") as bar:
                bar.advance(0)
                self._start_cluster(n_workers)
                bar.advance(n_workers)
        assert self._cluster is not None
        return str(self._cluster.scheduler_address), self._cluster.security

    def _nanny(self, *arguments: Any, **settings: Any) -> distributed.Nanny:
        """Starts one worker. Dask's cluster itself knows a worker only when it has connected."""
        nanny = distributed.Nanny(*arguments, **settings)
        self._nannies.append(nanny)
        return nanny

    def _start_cluster(self, n_workers: int) -> None:
        logging.getLogger("distributed").setLevel(logging.ERROR)
        scratch = str(self._held.enter_context(run_folder()).path)
        # Python starts this helper with the first worker, and then lets SIGINT and SIGTERM through to the worker.
        with _blocked(_SIGNALS):
            resource_tracker.ensure_running()
        # The thread that starts the workers is made here, and it hands its blocked signals on to them.
        with dask.config.set({"temporary-directory": scratch}), _blocked(_SIGNALS):
            cluster = distributed.LocalCluster(
                n_workers=0,
                processes=True,
                worker_class=self._nanny,
                threads_per_worker=1,
                # No memory limit: parts return no data to Dask, so Dask could free no memory by spilling.
                memory_limit=0,
                security=True,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False, "preload": [_SCHEDULER_SETUP]},
                local_directory=scratch,
                preload=[_WORKER_SETUP],
            )
        self._cluster = self._held.enter_context(cluster)
        cluster.scale(n_workers)
        try:
            cluster.wait_for_workers(n_workers, timeout=_STARTUP_SECONDS)
        except TimeoutError:
            raise UserError(
                f"--dask local: {n_workers} Dask workers did not start within {_STARTUP_SECONDS} seconds; "
                "run again with --dask none to do without them."
            ) from None


def parts_text(parts: Sequence[int]) -> str:
    """`0-4, 7` for the parts 0, 1, 2, 3, 4 and 7, with at most three ranges: `0-4, 7, 9 and 12 more`."""
    ranges: list[list[int]] = []
    for part in sorted(parts):
        if ranges and part == ranges[-1][1] + 1:
            ranges[-1][1] = part
        else:
            ranges.append([part, part])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:3]]
    n_others = sum(last - first + 1 for first, last in ranges[3:])
    return ", ".join(texts) + (f" and {n_others} more" if n_others else "")


@contextlib.contextmanager
def _blocked(signals: set[signal.Signals]) -> Iterator[None]:
    """Blocks signals inside the `with` block in this thread, and in threads and processes it starts there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reference(artifact: Artifact) -> Artifact:
    """The artifact without its cached manifest, which may be large and which the worker reads itself."""
    return Artifact(artifact.stage, artifact.key, artifact.path)
