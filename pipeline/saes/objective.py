"""What the training engine asks of an objective, and the settings every objective is trained with.

Shapes: n tokens, d channels, S latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pydantic import Field
from torch import Tensor

from pipeline.saes.base import Sae, SaeConfig
from pipeline.stream import Mix


@dataclass(frozen=True)
class Gradients:
    """What one forward and backward pass found; the gradients themselves are in the parameters' `grad`."""

    x_hat: Tensor  # [n, d]
    loss: float
    mse: float
    l1: float
    l1_norm: float
    ghost: float
    l0: float


class Objective(Protocol):
    """An SAE under training: it owns its parameters and their gradients, the engine everything else."""

    parameters: dict[str, Tensor]
    """What the optimiser updates."""
    state: dict[str, Tensor]
    """What else the next step depends on; in every checkpoint, changed in place."""

    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """One step up to the update: normalises parameters, sets their `grad`, advances `state`.

        `x` [n, d] float32; `token` [n] int64, the place of each token in its image.
        """
        ...

    def n_dead(self) -> int:
        """How many latents count as dead at this step."""
        ...

    def sae(self) -> Sae:
        """The weights as they are saved."""
        ...


class TrainedSaeConfig(SaeConfig):
    """Base of the configs of trained SAEs; a subclass adds its hyperparameters and `objective`."""

    seed: int = Field(0, ge=0)
    expansion: int = Field(64, ge=1)
    """Latents per channel."""
    n_latents: int | None = Field(None, ge=1)
    """How many latents, if not `expansion` times the channels."""
    mix: Mix = "tokens"
    """Shuffle single tokens, or whole images as the paper does."""
    batch_size: int = Field(4096, ge=1)
    """Tokens per step, or images with `mix: images`."""
    n_steps: int = Field(10_000, ge=1)
    """Optimiser steps. Training sees `n_steps * batch_size` tokens (or images)."""
    lr: float = Field(4e-4, gt=0)
    lr_warmup_steps: int = Field(500, ge=0)
    """The rate at step s (from 0) is `lr * min(1, (s + 1) / lr_warmup_steps)`."""
    log_every: int = Field(20, ge=1)
    """Steps between rows of the table `training`."""
    eval_split: str | None = None
    """Where the final numbers come from; None: the split it was trained on."""
    eval_tokens: int = Field(65_536, ge=2)
    """How many tokens the final numbers are computed on, at most; a shuffled sample."""

    def count_latents(self, width: int) -> int:
        return self.n_latents or self.expansion * width

    def objective(self, sample: Tensor, tokens_per_image: int) -> Objective:
        """The objective at step 0.

        `sample` [n, d] float32 on the device of training: the stream's first batch, which is not trained on.
        """
        raise NotImplementedError
