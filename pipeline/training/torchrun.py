"""Training on several GPUs or machines: `torchrun` starts ranks, which run `pipeline.training.worker`.

`pipeline.training.train` uses it for more than one process. The global batch stays the same: every rank takes
a slice of it, and gradients are summed over the ranks. Rank 0 writes the checkpoints. When the ranks have
ended, the process that launched them goes on from the last checkpoint.

On several machines, the launching process runs on the first one with torchrun's arguments for that
(`--nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT`). Each other machine has the store mounted at the
same path and runs `torchrun ARGUMENTS --nproc-per-node N -m patchsae.pipeline.training.worker JOB`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace

from patchsae.pipeline.core.interrupts import deferred_signals
from patchsae.pipeline.core.stage import Inputs, Runtime
from patchsae.pipeline.training.job import Job
from patchsae.pipeline.training.objective import TrainedSaeConfig
from patchsae.storage.artifacts import Builder
from patchsae.storage.atomic import write_atomic
from patchsae.storage.errors import UserError
from patchsae.storage.locks import lock

_JOB = "torchrun-job.json"
FAILURES = "torchrun-failures.json"
EVERY = "every"
_LOG = logging.getLogger("patchsae")
_LOOK_SECONDS = 5.0
_SECONDS_BETWEEN_LINES = 300.0


def launch(
    configs: Sequence[TrainedSaeConfig], inputs: Inputs, outs: Sequence[Builder], runtime: Runtime
) -> dict[int, UserError]:
    """Runs `torchrun` until every SAE has a checkpoint of its last step or has failed.

    Returns the reason for each SAE that failed, by its place in `configs`.
    Raises UserError if the ranks end before that.
    """
    resources = replace(runtime.resources(), processes=1)
    scratch = outs[0].session_folder()
    # Every launch locks a file of its own, so that old ranks do not take the next launcher for theirs.
    held = scratch / f"torchrun-{uuid.uuid4().hex}.lock"
    job = Job(configs, inputs, outs, resources, held, runtime.address or "train")
    (scratch / FAILURES).unlink(missing_ok=True)
    write_atomic(scratch / _JOB, job.to_json())
    command = [
        *(sys.executable, "-m", "torch.distributed.run", *shlex.split(runtime.torchrun)),
        *(
            "--nproc-per-node",
            str(runtime.processes),
            "-m",
            "patchsae.pipeline.training.worker",
            str(scratch / _JOB),
        ),
    ]
    with lock(job.held):
        # In a session of its own, torchrun does not get a terminal's Ctrl-C beside the SIGTERM from here.
        process = subprocess.Popen(command, env={**os.environ, "PYTHONSAFEPATH": "1"}, start_new_session=True)
        try:
            # On SIGTERM, torchrun sends SIGTERM to its ranks, which end after their step with a checkpoint.
            # It kills those that have not ended after 30 s.
            with deferred_signals(process.terminate):
                code = _wait(process, outs[0], runtime.address or "train")
        finally:
            process.kill()
    failures: dict[str, str] = {}
    if (scratch / FAILURES).exists():
        failures = json.loads((scratch / FAILURES).read_text())
    if EVERY in failures:
        raise UserError(failures[EVERY])
    if code:
        raise UserError(
            f"train: torchrun ended with exit status {code} (what it said is above); the last checkpoint is "
            "kept, so running again goes on from there."
        )
    return {int(i): UserError(message) for i, message in failures.items()}


def _wait(process: subprocess.Popen[bytes], out: Builder, address: str) -> int:
    """The exit status of the process when it ends.

    The ranks show bars, but their log is not that of the run. So the newest checkpoint is said here, at most every
    5 minutes.
    """
    said, said_at = None, -math.inf
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_LOOK_SECONDS)
        step = out.checkpoints.latest_step()
        if step != said and time.monotonic() - said_at > _SECONDS_BETWEEN_LINES:
            said, said_at = step, time.monotonic()
            _LOG.info("%s: there is a checkpoint of step %s", address, f"{step:,}")
