"""Training on several GPUs or machines: `torchrun` starts the ranks, each of which runs this module on a job file.

The global batch stays what it is; every rank takes its slice of it, and gradients are summed. Rank 0 writes the
checkpoints, from the last of which the process that launched the ranks goes on.

On more machines than one, the launching process runs on the first with torchrun's arguments for that
(`--nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT`), and on each other, with the store mounted at the same
path: `torchrun ARGUMENTS --nproc-per-node N -m pipeline.distributed JOB`.
"""

from __future__ import annotations

import json
import os
import pickle
import shlex
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.ranks import ProcessGroup
from pipeline.saes.objective import TrainedSaeConfig
from pipeline.stage import Inputs, Runtime, map_parts_here
from storage.artifacts import CHECKPOINTS, Builder
from storage.atomic import is_locked, lock, write_atomic
from storage.errors import UserError

_JOB = "torchrun.job"
_FAILURES = "torchrun.failures"
_EVERY = "every"
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Job:
    """What the ranks train, and for whom."""

    configs: Sequence[TrainedSaeConfig]
    inputs: Inputs
    outs: Sequence[Builder]
    runtime: Runtime
    held: Path
    """A file the launching process holds the lock of while it lives; the ranks end with it."""


def launch(
    configs: Sequence[TrainedSaeConfig], inputs: Inputs, outs: Sequence[Builder], runtime: Runtime
) -> dict[int, UserError]:
    """Runs `torchrun` until every SAE has a checkpoint of its last step; returns why which of them have not.

    Raises UserError if the ranks end otherwise.
    """
    plain = replace(runtime, map_parts=map_parts_here, processes=1)
    scratch = outs[0].path / CHECKPOINTS
    # A name of its own: ranks must not take the next launcher for theirs.
    job = Job(configs, inputs, outs, plain, scratch / f"torchrun-{uuid.uuid4().hex}.lock")
    (scratch / _FAILURES).unlink(missing_ok=True)
    write_atomic(scratch / _JOB, pickle.dumps(job))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", *shlex.split(runtime.torchrun)),
        *("--nproc-per-node", str(runtime.processes), "-m", "pipeline.distributed", str(scratch / _JOB)),
    ]
    # The ranks import this package from where this process has it.
    with lock(job.held):
        code = subprocess.run(command, check=False, cwd=Path(__file__).parents[1]).returncode
    failures: dict[str, str] = {}
    if (scratch / _FAILURES).exists():
        failures = json.loads((scratch / _FAILURES).read_text())
    if _EVERY in failures:
        raise UserError(failures[_EVERY])
    if code:
        raise UserError(
            f"train: torchrun ended with exit status {code} (what it said is above); the last checkpoint is kept, "
            "so running again goes on from there."
        )
    return {int(i): UserError(message) for i, message in failures.items()}


def _end_with_launcher(held: Path) -> None:
    """Ends this process once the launcher is gone: what it would write next belongs to nobody."""
    while held.exists() and is_locked(held):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def main(path: Path) -> None:
    """One rank."""
    from pipeline import train

    job: Job = pickle.loads(path.read_bytes())
    threading.Thread(target=_end_with_launcher, args=(job.held,), daemon=True).start()
    on_gpu = job.runtime.device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    ranks = ProcessGroup()
    runtime = replace(job.runtime, device="cuda" if on_gpu else "cpu")
    if ranks.rank:
        runtime = runtime.silent()
    failures: dict[str, str] = {}
    try:
        trainees, stream = train.begin(job.configs, job.inputs, job.outs, runtime, ranks)
        for trainee in trainees:
            trainee.restore()
        train.train(trainees, stream, runtime, ranks)
        failures = {str(i): str(t.failure) for i, t in enumerate(trainees) if t.failure is not None}
        if failures and ranks.rank == 0:
            write_atomic(path.parent / _FAILURES, json.dumps(failures).encode())
    except UserError as error:
        # Whichever rank finds it: the others may have other tokens.
        write_atomic(path.parent / _FAILURES, json.dumps({_EVERY: str(error)}).encode())
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
