"""One SAE under training: its objective, optimiser, metrics and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.adam import Adam, clip_
from pipeline.metric_writers import MetricWriter
from pipeline.ranks import Ranks
from pipeline.saes.base import Sae
from pipeline.saes.objective import Objective, TrainedSaeConfig
from pipeline.training_metrics import TRAINING, Reconstruction
from storage import tables
from storage.artifacts import Builder
from storage.checkpoints import Checkpoints
from storage.errors import UserError


def learning_rate(config: TrainedSaeConfig, step: int) -> float:
    """The rate at a step counted from 0: `lr * min(1, (step + 1) / lr_warmup_steps)` (spec 2.5), times the schedule.

    Both schedules would reach 0 at `n_steps`, one step after the last.
    """
    warmed = config.lr * min(1.0, (step + 1) / max(1, config.lr_warmup_steps))
    left = config.n_steps - step
    match config.lr_schedule:
        case "constant":
            return warmed
        case "cosine":
            falling = max(1, config.n_steps - config.lr_warmup_steps)
            return warmed * (1 + math.cos(math.pi * (1 - min(1.0, left / falling)))) / 2
        case "trapezoid":
            return warmed * min(1.0, left / (config.lr_decay_steps or max(1, config.n_steps // 5)))


@dataclass
class Trainee:
    """Everything the next step depends on, and the metrics so far.

    `scale`: what activations are multiplied by (`input_norm`). `failure`: why training cannot go on.
    `writers`: who else is told the metrics.
    """

    config: TrainedSaeConfig
    out: Builder
    objective: Objective
    optimiser: Adam
    ranks: Ranks
    scale: float
    step: int = 0
    loss: float = math.nan
    l0: float = math.nan
    rows: list[dict[str, float]] = field(default_factory=list)
    failure: UserError | None = None
    writers: Sequence[MetricWriter] = ()

    @classmethod
    def begin(
        cls, config: TrainedSaeConfig, out: Builder, sample: Tensor, tokens_per_image: int, ranks: Ranks
    ) -> Trainee:
        """At step 0; `sample` [n, d] is the stream's first batch."""
        scale = 1.0
        if config.input_norm == "expected_norm":
            scale = math.sqrt(sample.shape[1]) / sample.norm(dim=1).mean().item()
        objective = config.objective(sample * scale if scale != 1 else sample, tokens_per_image, ranks)
        return cls(config, out, objective, Adam(objective.parameters), ranks, scale)

    def is_finite(self) -> bool:
        """Whether the weights are numbers; the same on every rank, as the weights are."""
        return all(bool(torch.isfinite(p).all()) for p in self.objective.parameters.values())

    def wants_steps(self) -> bool:
        return self.failure is None and self.step < self.config.n_steps

    def take_step(self, x: Tensor, token: Tensor) -> None:
        """One optimiser step on this rank's tokens [n, d]. Sets `failure`, and changes no parameter, if the loss is
        no number."""
        if self.scale != 1:
            x = x * self.scale
        lr = learning_rate(self.config, self.step)
        found = self.objective.gradients(x, token)
        parts = torch.tensor(
            [found.reconstruction, found.penalty, found.auxiliary, found.l1_norm, found.l0],
            dtype=torch.float64,
            device=x.device,
        )
        parameters = self.objective.parameters
        self.ranks.sum_([parts, *(p.grad for p in parameters.values() if p.grad is not None)])
        reconstruction, penalty, auxiliary, l1_norm, l0 = parts.tolist()
        self.loss, self.l0 = reconstruction + penalty + auxiliary, l0
        if not math.isfinite(self.loss):
            self.fail()
            return
        self.step += 1
        is_logged = self.step % self.config.log_every == 0 or self.step in (1, self.config.n_steps)
        grad_norm = math.nan
        if is_logged or self.config.clip_grad_norm is not None:
            grad_norm = clip_(parameters, self.config.clip_grad_norm or math.inf)
        self.optimiser.step(lr, self.step)
        if is_logged:
            quality = Reconstruction(x.shape[1], str(x.device))
            quality.add(x, found.x_hat)
            self.ranks.sum_([quality.sums])
            self.rows.append(
                {
                    "step": self.step,
                    "n_tokens": self.step * quality.n_tokens,
                    "loss": self.loss,
                    "reconstruction": reconstruction,
                    "penalty": penalty,
                    "auxiliary": auxiliary,
                    "l1_norm": l1_norm,
                    "l0": l0,
                    "explained_variance": quality.explained_variance,
                    "explained_variance_uncentred": quality.explained_variance_uncentred,
                    "n_dead": self.objective.n_dead(),
                    "grad_norm": grad_norm,
                    "lr": lr,
                }
            )
            for writer in self.writers:
                writer.write(self.rows[-1])

    def sae(self) -> Sae:
        """The SAE as it is saved, for activations as they are stored."""
        sae = self.objective.sae()
        if self.config.unit_decoder:
            sae = sae.with_unit_decoder()
        return sae if self.scale == 1 else sae.on_inputs_divided_by(self.scale)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **{f"parameter.{name}": tensor for name, tensor in self.objective.parameters.items()},
            **{f"adam.{name}": tensor for name, tensor in self.optimiser.moments.items()},
            **{f"state.{name}": tensor for name, tensor in self.objective.state.items()},
        }

    def save(self) -> None:
        """Writes a checkpoint."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        arrays |= {f"row.{name}": values for name, values in self.columns().items()}
        Checkpoints(self.out.path).save(self.step, arrays, {})
        self.show()

    def restore(self) -> None:
        """Takes up the newest checkpoint, if there is one. Raises UserError, and changes nothing, if it is another
        SAE's."""
        checkpoint = Checkpoints(self.out.path).latest()
        if checkpoint is None:
            return
        expected = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        found = {n: a.shape for n, a in checkpoint.arrays.items() if not n.startswith("row.")}
        if found != expected:
            name = min(n for n in {*found, *expected} if found.get(n) != expected.get(n))
            raise UserError(
                f"{self.out.path}: its checkpoint of step {checkpoint.step} is of another SAE ({name} is "
                f"{found.get(name, 'missing')}, not {expected.get(name, 'expected')}); delete the folder's "
                "`checkpoints` to train from the start."
            )
        for name, tensor in self._tensors().items():
            # Copied into torch's own memory: kernels may sum in another order at another alignment.
            tensor.copy_(torch.from_numpy(checkpoint.arrays[name]))
        self.step = checkpoint.step
        columns = {c.name: checkpoint.arrays[f"row.{c.name}"].tolist() for c in TRAINING.columns}
        self.rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        # A killed run may have shown rows that come again.
        self.show()

    def show(self) -> None:
        """Rewrites the table of metrics."""
        tables.write(self.out, TRAINING, self.columns())

    def columns(self) -> dict[str, np.ndarray]:
        """The metrics as columns of the table `training`."""
        return {
            c.name: np.array([row[c.name] for row in self.rows], c.type.to_pandas_dtype())
            for c in TRAINING.columns
        }

    def fail(self) -> None:
        """Ends training here: the loss or a weight is no number any more."""
        self.failure = UserError(
            f"train {self.out.key[:16]}: the loss is no longer a number after step {self.step}; set a lower lr (now "
            f"{self.config.lr:g}), a longer lr_warmup_steps (now {self.config.lr_warmup_steps}) or clip_grad_norm; "
            "the last good checkpoint is kept."
        )
