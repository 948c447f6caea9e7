"""`Resources`: the settings of a run that are in no key, such as the device and the number of processes.

The command line, the flows and `Runtime` take their options from here. The module holds a plain dataclass
only, so that the command line can show its options without importing pydantic or torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def _setting(default: Any, description: str, least: float | None = None) -> Any:
    return field(default=default, metadata={"description": description, "least": least})


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The settings that may differ between two runs of an experiment without changing any key.

    On a CPU they do not change a byte of a result, except `processes`. It changes the gradient of a step by
    rounding, and so in many steps the weights of an SAE, but hardly its quality. The options of
    `patchsae run`, the parameters of the flows and `Runtime` are made from these fields. The metadata of a
    field hold its help sentence (`description`) and its least value (`least`).
    """

    device: str | None = _setting(None, "cpu, cuda or cuda:1.  [default: cuda where there is one]")
    workers: int | None = _setting(
        None,
        "Processes that decode images; 0 is one thread of this process.  "
        "[default: half the cores; 0 on a CPU]",
        0,
    )
    batch_images: int = _setting(
        256, "Images per forward pass on an accelerator. A CPU takes one chunk of images per pass.", 1
    )
    checkpoint_seconds: float = _setting(60.0, "Seconds between two checkpoints of training, about.", 0.01)
    processes: int = _setting(
        1,
        "Processes (GPUs) of this machine that train an SAE together, started by torchrun. Another number "
        "changes a step by rounding, over many steps the weights, and hardly the quality.",
        1,
    )
    torchrun: str = _setting(
        "--standalone", "Arguments for torchrun, to let several machines train an SAE together."
    )
    members: int = _setting(
        8, "SAEs trained in one pass over the activations, at most. All of them are in memory at once.", 1
    )
    log: tuple[str, ...] = _setting(
        (),
        "Write training metrics to `tensorboard` or `wandb` too, beside the table `training`. "
        "May be repeated.",
    )
    dask: str = _setting(
        "local",
        "Where the parts of evaluations run: `local` (one process per core), `none` (this process), or the "
        "address of a Dask scheduler, such as `tcp://host:8786`.",
    )
