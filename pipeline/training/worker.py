"""The entry point of one rank of SAE training; `torchrun` starts it (`pipeline.training.torchrun`)."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from patchsae.pipeline.core.progress import ConsoleReporter
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.training import train
from patchsae.pipeline.training.job import Job
from patchsae.pipeline.training.process_group import ProcessGroup
from patchsae.pipeline.training.torchrun import EVERY, FAILURES
from patchsae.storage.atomic import write_atomic
from patchsae.storage.errors import UserError
from patchsae.storage.locks import is_locked

_SECONDS_BETWEEN_LOOKS = 1.0


def _end_with_launcher(held: Path) -> None:
    """Ends this process once the launcher is gone, because nobody would own what it writes next."""
    while held.exists() and is_locked(held):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def main(path: Path) -> None:
    """Trains the SAEs of the job file `path` as one of the ranks.

    Reasons for failure go to the file `FAILURES` beside the job file. After a UserError, the status is 1.
    """
    job = Job.of_json(path.read_bytes())
    threading.Thread(target=_end_with_launcher, args=(job.held,), daemon=True).start()
    on_gpu = str(job.resources.device).startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    ranks = ProcessGroup()
    shown = {"reporter": ConsoleReporter()} if ranks.rank == 0 else {}
    resources = replace(job.resources, device="cuda" if on_gpu else "cpu")
    runtime = Runtime.here(resources, **shown).building("train", [job.address])
    failures: dict[str, str] = {}
    try:
        members, stream = train.begin(job.configs, job.inputs, job.outs, runtime, ranks)
        for member in members:
            member.restore()
        train.train(members, stream, runtime, ranks)
        failures = {str(i): str(t.failure) for i, t in enumerate(members) if t.failure is not None}
        if failures and ranks.rank == 0:
            write_atomic(path.parent / FAILURES, json.dumps(failures).encode())
    except UserError as error:
        # Any rank writes the reason, because the others have other tokens and may not have found it.
        write_atomic(path.parent / FAILURES, json.dumps({EVERY: str(error)}).encode())
        raise SystemExit(1) from None
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
