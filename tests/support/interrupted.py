"""A process that trains an SAE and halts in the middle of a step, so that a signal can reach it there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from patchsae.pipeline.saes.sparse.latents import DenseLatents
from patchsae.pipeline.training import train
from patchsae.pipeline.training.objective import TrainedSaeConfig
from patchsae.storage.store import Store
from tests.support.sae_inputs import run
from tests.support.training_inputs import NO_STEP, config_of

Where = Literal["update", "gradients"]
HALTS_IN_STEP = 8
_N_PARAMETERS = 4


def config(n_steps: int = 60) -> TrainedSaeConfig:
    return config_of("relu_l1", n_steps=n_steps)


def start(
    store: Store, processes: int = 1, n_steps: int = 60, where: Where = "update"
) -> subprocess.Popen[str]:
    """Starts training in a process of its own on the inputs in the store.

    It writes no checkpoint but its last. Of one process, the step `HALTS_IN_STEP` has updated some of the
    weights (or, in `gradients`, has scaled its decoder rows and found its latents) and then reads lines from
    standard input: it answers each with a line, and goes on after `go`.
    """
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(store.root), str(processes), str(n_steps), where],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if processes > 1 else None,
        text=True,
    )


def say(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _halting(update: Any) -> Any:
    n_calls = 0

    def halting(*arguments: Any, **settings: Any) -> None:
        nonlocal n_calls
        n_calls += 1
        update(*arguments, **settings)
        if n_calls == (HALTS_IN_STEP - 1) * _N_PARAMETERS + 2:
            _answer_until_go()

    return halting


def _halting_inside(product: Any) -> Any:
    """`product` of dense latents, which halts in the middle of the step `HALTS_IN_STEP`."""
    n_calls = 0

    def halting(*arguments: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        # A step of one block has one decoding.
        if n_calls == HALTS_IN_STEP:
            _answer_until_go()
        return product(*arguments)

    return halting


def _answer_until_go() -> None:
    word = "halted"
    while word != "go":
        print(word, flush=True)
        word = sys.stdin.readline().strip()


def _main(root: str, processes: int, n_steps: int, where: str) -> None:
    torch.set_num_threads(1)
    if where == "gradients":
        DenseLatents.decode = _halting_inside(DenseLatents.decode)  # type: ignore[method-assign]
    elif processes == 1:
        torch._fused_adam_ = _halting(torch._fused_adam_)  # type: ignore[assignment]
    store = Store(root)
    inputs = {
        "activations": store.committed("extract")[0],
        "images": store.committed("index")[0],
    }
    run(store, train.STAGE, config(n_steps), inputs, replace(NO_STEP, processes=processes))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
