"""What the training engine asks of an objective, and the settings every objective is trained with.

Shapes: n tokens, d channels, S latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, Self

from pydantic import Field, model_validator
from torch import Tensor

from pipeline.ranks import ALONE, Ranks
from pipeline.saes.base import Sae, SaeConfig
from pipeline.saes.initialisation import DecoderBias, WeightInit, start
from pipeline.stage import Stage
from pipeline.stream import Mix

Precision = Literal["float32", "bfloat16"]
InputNorm = Literal["none", "expected_norm"]
LrSchedule = Literal["constant", "cosine", "trapezoid"]


@dataclass(frozen=True)
class Gradients:
    """What one forward and backward pass found; the gradients themselves are in the parameters' `grad`.

    Numbers are shares of this rank: over all ranks they add up to the mean over the whole batch.
    `loss` = `reconstruction` + `penalty` + `auxiliary`.
    """

    x_hat: Tensor  # [n, d]
    reconstruction: float
    penalty: float
    auxiliary: float
    l1_norm: float
    l0: float

    @property
    def loss(self) -> float:
        return self.reconstruction + self.penalty + self.auxiliary


class Objective(Protocol):
    """An SAE under training: it owns its parameters and their gradients, the engine everything else."""

    parameters: dict[str, Tensor]
    """What the optimiser updates."""
    state: dict[str, Tensor]
    """What else the next step depends on; in every checkpoint, changed in place, the same on every rank."""

    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """One step up to the update: normalises parameters, sets their `grad`, advances `state`.

        `x` [n, d] float32, this rank's slice of the batch; `token` [n] int64, the place of each token in its
        image. Each `grad` is this rank's share: their sum over the ranks is the gradient.
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
    """Of the initial weights."""
    shuffle_seed: int = Field(0, ge=0)
    """Of the order of the training stream. SAEs that share it, and what they are trained on, share one pass."""
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
    precision: Precision = "float32"
    """`bfloat16` finds the latents that fire with bfloat16 products, their values and all weights stay float32."""
    input_norm: InputNorm = "none"
    """`expected_norm` trains on activations scaled to a mean length of sqrt(d); the saved SAE takes them as they
    are."""
    init: WeightInit = "transpose"
    """`transpose`: encoder = decoder^T, random rows; `data_points`: the same with rows towards tokens of the first
    batch; `reference`: the paper's code, encoder and decoder apart."""
    encoder_scale: float = Field(1.0, gt=0)
    """Length of the encoder's rows at the start, `reference` aside. Adam's steps are as long for any weight, so short
    rows turn sooner: at 0.1 FVU is lower after the same steps, and more latents of a wide SAE stay dead."""
    b_dec_init: DecoderBias = "geometric_median"
    """`geometric_median_reference` takes whole images as points, as the reference does."""
    lr: float = Field(4e-4, gt=0)
    lr_warmup_steps: int = Field(500, ge=0)
    """The rate at step s (from 0) is `lr * min(1, (s + 1) / lr_warmup_steps)`, times the schedule."""
    lr_schedule: LrSchedule = "constant"
    """`cosine` falls to 0 from the warm-up to the end, `trapezoid` linearly over the last `lr_decay_steps`."""
    lr_decay_steps: int | None = Field(None, ge=1)
    """A fifth of all steps if not given."""
    clip_grad_norm: float | None = Field(None, gt=0)
    """Gradients longer than this, over all parameters, are scaled down to it."""
    dead_feature_window: int = Field(64, ge=0)
    """A latent is dead once it has not fired for more than this many steps."""
    unit_decoder: bool = True
    """Save decoder rows at length 1 and scale each latent by what its row had instead: the same function.
    The reference saves the rows as the last Adam step left them."""
    log_every: int = Field(20, ge=1)
    """Steps between rows of the table `training`."""
    eval_split: str | None = None
    """Where the final numbers come from; None: the split it was trained on."""
    eval_tokens: int = Field(65_536, ge=2)
    """How many tokens the final numbers are computed on, at most; a shuffled sample."""

    @model_validator(mode="after")
    def _reference_median_needs_images(self) -> Self:
        if self.b_dec_init == "geometric_median_reference" and self.mix != "images":
            raise ValueError(
                "b_dec_init `geometric_median_reference` has whole images as points; set mix: images"
            )
        return self

    def stage(self) -> Stage:
        # The engine is built on this module, which therefore cannot import it at the top.
        from pipeline.train import STAGE

        return STAGE

    def count_latents(self, width: int) -> int:
        return self.n_latents or self.expansion * width

    def start(self, sample: Tensor, tokens_per_image: int) -> Sae:
        """The weights at step 0, see `objective`."""
        return start(
            self.init,
            self.b_dec_init,
            sample,
            self.count_latents(sample.shape[1]),
            self.seed,
            tokens_per_image,
            self.encoder_scale,
        )

    def objective(self, sample: Tensor, tokens_per_image: int, ranks: Ranks = ALONE) -> Objective:
        """The objective at step 0.

        `sample` [n, d] float32 on the device of training: the stream's first batch, which is not trained on.
        Raises UserError if a hyperparameter does not fit the number of latents.
        """
        raise NotImplementedError
