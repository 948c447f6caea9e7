"""How adapters are trained: the order of the images, the learning rate of every step, and the optimiser.

The recipe is that of Dassl, on which CoOp, MaPLe and PromptSRC are built: the rate is constant in the first
epoch, and from the second on falls along a cosine, from epoch to epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.adapters.adapter import AdapterConfig


@dataclass(frozen=True)
class Recipe:
    """The steps of an adapter with `n_images` drawn images."""

    config: AdapterConfig
    n_images: int

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of an epoch; one smaller batch if there are fewer images than a batch has."""
        return max(1, self.n_images // self.config.batch_size)

    @property
    def n_steps(self) -> int:
        return self.config.steps or self.config.epochs * self.steps_per_epoch

    @property
    def n_epochs(self) -> int:
        return math.ceil(self.n_steps / self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """The epoch of a step; both count from 0."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether a step is the last of its epoch."""
        return step + 1 == self.n_steps or (step + 1) % self.steps_per_epoch == 0

    def order(self, epoch: int) -> np.ndarray:
        """The order of the images in an epoch: a permutation, int64 [n_images]."""
        return _order(self.config.seed, epoch, self.n_images)

    def images(self, step: int) -> np.ndarray:
        """The positions, among the drawn images, of the images of a step: int64 [B]."""
        epoch, nth = divmod(step, self.steps_per_epoch)
        start = nth * self.config.batch_size
        return self.order(epoch)[start : start + self.config.batch_size]

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step.

        In the first w = `warmup_epochs` epochs it is `warmup_lr`. After them it is lr (1 + cos(pi x)) / 2 with
        x = (epoch - w) / epochs for the schedule `epoch`, and x = (step - w steps_per_epoch) / steps for `step`.
        """
        config, epoch = self.config, self.epoch_of(step)
        if epoch < config.warmup_epochs:
            return config.warmup_lr
        match config.schedule:
            case "constant":
                return config.lr
            case "epoch":
                x = (epoch - config.warmup_epochs) / self.n_epochs
            case "step":
                x = (step - config.warmup_epochs * self.steps_per_epoch) / self.n_steps
        return config.lr * (1 + math.cos(math.pi * x)) / 2

    def optimiser(self, parameters: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """The optimiser of the parameters, in the order of their names."""
        config = self.config
        groups = [parameters[name] for name in sorted(parameters)]
        if config.optimiser == "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, n_images: int) -> np.ndarray:
    """The order of raw numbers from PCG64, whose stream NumPy guarantees. Every step of an epoch asks for it."""
    source = np.random.PCG64(np.random.SeedSequence((seed, epoch)))
    return np.argsort(source.random_raw(n_images), kind="stable")


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimiser's state by name, such as `3.momentum_buffer`, on the CPU."""
    found = {}
    for number, of_parameter in optimiser.state_dict()["state"].items():
        for name, value in of_parameter.items():
            if value is not None:
                found[f"{number}.{name}"] = torch.as_tensor(value).cpu().clone()
    return found


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Takes up what `optimiser_state` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
