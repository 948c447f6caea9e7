"""What training requires of an objective, and the settings that all trained SAEs have in common.

`pipeline.training.member` trains anything that is an `Objective`; the kinds are in `objectives/`.

Shapes: n tokens, d channels, S latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self

from pydantic import Field, model_validator
from torch import Tensor

from patchsae.pipeline.activations.stream import Mix
from patchsae.pipeline.saes.sae import Sae, SaeConfig
from patchsae.pipeline.training.initialisation import DecoderBias, EncoderScale, WeightInit, start
from patchsae.pipeline.training.process_group import ALONE, Ranks
from patchsae.storage.tokens import TokenSelection

Precision = Literal["float32", "bfloat16"]
InputNorm = Literal["none", "expected_norm"]
LrSchedule = Literal["constant", "cosine", "trapezoid"]


@dataclass(frozen=True)
class Gradients:
    """The results of one forward and backward pass; the gradients themselves are in the parameters' `grad`.

    Each number is this rank's share: the sum over all ranks is the mean over the whole batch.
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
    """An SAE under training. It owns its parameters and their gradients; the training loop owns the rest."""

    parameters: dict[str, Tensor]
    """The tensors that the optimiser updates."""
    state: dict[str, Tensor]
    """What else the next step depends on: saved in checkpoints, changed in place, the same on every rank."""

    def gradients(self, x: Tensor, token: Tensor) -> Gradients:
        """Does one step up to the optimiser's update: normalises parameters, sets `grad`, advances `state`.

        `x` [n, d] float32 is this rank's slice of the batch, `token` [n] int64 the place of each token in its
        image. Each `grad` is this rank's share: the sum over all ranks is the gradient.
        """
        ...

    def n_dead(self) -> int:
        """The number of latents that are dead at this step."""
        ...

    def sae(self) -> Sae:
        """The SAE with the present weights."""
        ...


class TrainedSaeConfig(SaeConfig):
    """Base of the configs of trained SAEs. A subclass adds its hyperparameters and `objective`."""

    stage = "train"
    fresh_density: ClassVar[float] = 0.0
    """About the share of latents that are on in the first steps; 0 if no more than later. Only for predictions."""
    split: str = "train"
    """The split of the data set that the SAE is trained on."""
    tokens: TokenSelection = "all"
    """Which tokens of each image the SAE is trained on: `all` of the image, its `patches`, the `prefix` (such as CLS),
    or `with_prompts` learned prompt tokens too."""
    seed: int = Field(0, ge=0)
    """Seed of the initial weights."""
    shuffle_seed: int = Field(0, ge=0)
    """Seed of the order of the training stream. SAEs of the same activations that also share `split`,
    `tokens`, `mix` and `batch_size` are trained in one pass over the stream."""
    expansion: int = Field(64, ge=1)
    """Latents per channel."""
    n_latents: int | None = Field(None, ge=1)
    """Number of latents; `expansion` times the channels if not given."""
    mix: Mix = "tokens"
    """`tokens` shuffles single tokens; `images` shuffles whole images, as the paper does."""
    batch_size: int = Field(4096, ge=1)
    """Tokens per step, or images per step with `mix: images`."""
    n_steps: int = Field(10_000, ge=1)
    """Optimiser steps. Training sees `n_steps * batch_size` tokens (or images)."""
    precision: Precision = "float32"
    """`bfloat16` finds the latents that fire with bfloat16 products and computes their values in float32.
    While very many fire (the first steps of ReLU SAEs), dense bfloat16 products do both. Weights are always
    float32."""
    input_norm: InputNorm = "none"
    """`expected_norm` scales activations so that their mean norm in the first batch is sqrt(d). The scale is
    folded into the saved SAE, which takes activations as they are stored."""
    init: WeightInit = "transpose"
    """`transpose`: random decoder rows, and the encoder is decoder^T times `encoder_scale`. `data_points`:
    the same, with the rows turned towards tokens of the first batch. `reference`: as in the paper's code,
    encoder and decoder are random and independent."""
    encoder_scale: EncoderScale = 1.0
    """Initial norm of the encoder's rows (`init: reference` ignores it): `live_latents` is 1, `low_fvu` is 0.1,
    and any number above 0 can be given. Adam moves every weight by about `lr` per step, so short rows change
    direction faster: after 600 steps FVU is lower, but more latents of wide SAEs stay dead
    (docs/training.md)."""
    b_dec_init: DecoderBias = "geometric_median"
    """Initial decoder bias, from the tokens of the first batch. `geometric_median_reference` takes whole
    images as points, as the reference does, and needs `mix: images`."""
    lr: float = Field(4e-4, gt=0)
    """Learning rate of Adam after the warm-up."""
    lr_warmup_steps: int = Field(500, ge=0)
    """The rate at step s, counted from 0, is `lr * min(1, (s + 1) / lr_warmup_steps)`, times the schedule."""
    lr_schedule: LrSchedule = "constant"
    """`cosine` falls to 0 between the end of the warm-up and the end of training; `trapezoid` falls linearly
    to 0 over the last `lr_decay_steps`."""
    lr_decay_steps: int | None = Field(None, ge=1)
    """Number of steps over which `trapezoid` falls; a fifth of all steps if not given."""
    clip_grad_norm: float | None = Field(None, gt=0)
    """If the norm of the gradient over all parameters is larger than this, it is scaled down to it."""
    dead_feature_window: int = Field(64, ge=0)
    """A latent is dead once it has not fired for more than this many steps."""
    unit_decoder: bool = True
    """Save decoder rows with norm 1 and multiply each latent by the norm its row had: the same function. SAEs
    that select the k largest latents of each token only get the unit rows, since multiplying would change
    which are the largest. `false` saves the rows as the last Adam step left them, as the reference does."""

    removed: ClassVar[dict[str, str]] = {
        "log_every": "the table `training` has 10 to 500 rows, evenly spaced; leave it out",
        "eval_split": "what an SAE scores is told by an evaluation of kind `reconstruction`, which names its "
        "split",
        "eval_tokens": "what an SAE scores is told by an evaluation of kind `reconstruction`, which has a "
        "`limit`",
    }

    @model_validator(mode="after")
    def _reference_median_needs_images(self) -> Self:
        if self.b_dec_init == "geometric_median_reference" and self.mix != "images":
            raise ValueError(
                "b_dec_init `geometric_median_reference` has whole images as points; set mix: images"
            )
        return self

    @property
    def log_every(self) -> int:
        """Steps between rows of the table `training`: 20, as in the reference (spec 2.8).

        Runs of fewer than 200 steps have a smaller number and runs of more than 10,000 steps a larger one, so
        that the table has about 10 to 500 rows.
        """
        return max(1, min(20, self.n_steps // 10), self.n_steps // 500)

    def count_latents(self, width: int) -> int:
        return self.n_latents or self.expansion * width

    def check(self, n_latents: int) -> None:
        """Raises UserError if a hyperparameter does not fit the number of latents."""

    def start(self, sample: Tensor, tokens_per_image: int) -> Sae:
        """The weights at step 0; the arguments are those of `objective`."""
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

        `sample` [n, d] float32, on the device of training, is the stream's first batch, which is not trained
        on. Raises UserError if a hyperparameter does not fit the number of latents.
        """
        raise NotImplementedError
