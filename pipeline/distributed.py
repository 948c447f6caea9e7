"""Training on several GPUs or machines: `torchrun` starts the ranks, each of which runs this module on a job file.

The global batch stays what it is; every rank takes its slice of it, and gradients are summed. Rank 0 writes the
checkpoints, from the last of which the process that launched the ranks goes on.

On more machines than one, the launching process runs on the first with torchrun's arguments for that
(`--nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:PORT`), and on each other, with the store mounted at the same
path: `torchrun ARGUMENTS --nproc-per-node N -m pipeline.distributed JOB`.
"""

from __future__ import annotations

import os
import pickle
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.ranks import ProcessGroup
from pipeline.saes.objective import TrainedSaeConfig
from pipeline.stage import Inputs, Runtime, map_parts_here
from storage.artifacts import CHECKPOINTS, Builder
from storage.atomic import write_atomic
from storage.errors import UserError

_JOB = "torchrun.job"
_FAILURE = "torchrun.failure"
_SECONDS_BETWEEN_LOOKS = 1.0


@dataclass(frozen=True)
class Job:
    """What the ranks train, and for whom."""

    configs: Sequence[TrainedSaeConfig]
    inputs: Inputs
    outs: Sequence[Builder]
    runtime: Runtime
    host: str
    launcher: int
    """Process on `host` without which the ranks there end."""


def launch(
    configs: Sequence[TrainedSaeConfig], inputs: Inputs, outs: Sequence[Builder], runtime: Runtime
) -> None:
    """Runs `torchrun` until every SAE has a checkpoint of its last step.

    Raises UserError if an SAE cannot be trained, or if the ranks end otherwise.
    """
    plain = replace(runtime, map_parts=map_parts_here, processes=1)
    job = Job(configs, inputs, outs, plain, socket.gethostname(), os.getpid())
    scratch = outs[0].path / CHECKPOINTS
    (scratch / _FAILURE).unlink(missing_ok=True)
    write_atomic(scratch / _JOB, pickle.dumps(job))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", *shlex.split(runtime.torchrun)),
        *("--nproc-per-node", str(runtime.processes), "-m", "pipeline.distributed", str(scratch / _JOB)),
    ]
    code = subprocess.run(command, check=False).returncode
    if (scratch / _FAILURE).exists():
        raise UserError((scratch / _FAILURE).read_text())
    if code:
        raise UserError(
            f"train: torchrun ended with exit status {code} (what it said is above); the last checkpoint is kept, "
            "so running again goes on from there."
        )


def _end_with(launcher: int) -> None:
    """Ends this process once another is gone: what it would write next belongs to nobody."""
    while True:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        try:
            os.kill(launcher, 0)
        except ProcessLookupError:
            os._exit(1)


def main(path: Path) -> None:
    """One rank."""
    from pipeline import train

    job: Job = pickle.loads(path.read_bytes())
    if socket.gethostname() == job.host:
        threading.Thread(target=_end_with, args=(job.launcher,), daemon=True).start()
    on_gpu = job.runtime.device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    ranks = ProcessGroup()
    runtime = replace(job.runtime, device="cuda" if on_gpu else "cpu")
    if ranks.rank:
        runtime = runtime.silent()
    try:
        trainees, stream = train.begin(job.configs, job.inputs, job.outs, runtime, ranks)
        for trainee in trainees:
            trainee.restore()
        train.train(trainees, stream, runtime, ranks)
        for trainee in trainees:
            if trainee.failure is not None:
                raise trainee.failure
    except UserError as error:
        if ranks.rank == 0:
            write_atomic(path.parent / _FAILURE, str(error).encode())
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
