"""One SAE under training (by `pipeline.training.train`): objective, optimiser, metrics, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from patchsae.pipeline.core.interrupts import Abandoned
from patchsae.pipeline.saes.quality import Reconstruction
from patchsae.pipeline.saes.sae import Sae
from patchsae.pipeline.training.adam import Adam
from patchsae.pipeline.training.metrics import TRAINING
from patchsae.pipeline.training.objective import Objective, TrainedSaeConfig
from patchsae.pipeline.training.parameters import BEGUN
from patchsae.pipeline.training.process_group import Ranks
from patchsae.pipeline.training.writers import MetricWriter
from patchsae.storage.artifacts import Builder
from patchsae.storage.errors import UserError


def learning_rate(config: TrainedSaeConfig, step: int) -> float:
    """The learning rate at `step`, which counts from 0.

    It is `lr * min(1, (step + 1) / lr_warmup_steps)` (spec 2.5), times the schedule. The schedules `cosine`
    and `trapezoid` reach 0 at `n_steps`, one step after the last.
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
class Member:
    """Everything that the next step of one SAE depends on, and its metrics so far.

    `scale` is the factor that activations are multiplied by (`input_norm`). `failure` says why training
    cannot go on. `writers` receive every row of metrics besides the table `training`.
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
    ) -> Member:
        """A member at step 0; `sample` [n, d] is the stream's first batch."""
        scale = 1.0
        if config.input_norm == "expected_norm":
            scale = math.sqrt(sample.shape[1]) / sample.norm(dim=1).mean().item()
        objective = config.objective(sample * scale if scale != 1 else sample, tokens_per_image, ranks)
        return cls(config, out, objective, Adam(objective.parameters), ranks, scale)

    def is_finite(self) -> bool:
        """Whether all weights are finite.

        Every rank has the same weights, so every rank gets the same answer.
        """
        return all(bool(torch.isfinite(p).all()) for p in self.objective.parameters.values())

    def wants_steps(self) -> bool:
        return self.failure is None and self.step < self.config.n_steps

    def take_step(self, x: Tensor, token: Tensor) -> None:
        """Takes one optimiser step on this rank's tokens x [n, d]; `token` [n] are their places in images.

        If the loss is not finite, it sets `failure` and Adam makes no update. Raises Abandoned, with everything
        as it was but the beginning of the step, if the process is asked to end and this thread allows it.
        """
        if self.scale != 1:
            x = x * self.scale
        lr = learning_rate(self.config, self.step)
        before = {name: tensor.clone() for name, tensor in self.objective.state.items() if name != BEGUN}
        try:
            found = self.objective.gradients(x, token)
        except Abandoned:
            for name, tensor in before.items():
                self.objective.state[name].copy_(tensor)
            raise
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
        grad_norm, longest = math.nan, self.config.clip_grad_norm
        if is_logged or longest is not None:
            norm = get_total_norm([p.grad for p in parameters.values() if p.grad is not None])
            grad_norm = norm.item()
            if longest is not None:
                clip_grads_with_norm_(parameters.values(), longest, norm)
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
        """The SAE as it is saved: it takes activations as they are stored, not multiplied by `scale`."""
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
        """Writes a checkpoint and the table of metrics."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        arrays |= {f"row.{name}": values for name, values in self.columns().items()}
        self.out.checkpoints.save(self.step, arrays, {})
        self.show()

    def restore(self) -> None:
        """Continues from the newest checkpoint, if there is one.

        Raises UserError, and changes nothing, if its tensors do not have the names and shapes of this SAE's.
        """
        checkpoint = self.out.checkpoints.latest()
        if checkpoint is None:
            return
        # Checkpoints of earlier versions were all written between two steps.
        arrays = {f"state.{BEGUN}": np.zeros(1, np.uint8), **checkpoint.arrays}
        expected = {name: tuple(tensor.shape) for name, tensor in self._tensors().items()}
        found = {n: a.shape for n, a in arrays.items() if not n.startswith("row.")}
        if found != expected:
            name = min(n for n in {*found, *expected} if found.get(n) != expected.get(n))
            raise UserError(
                f"{self.out.path}: its checkpoint of step {checkpoint.step} is of another SAE ({name} is "
                f"{found.get(name, 'missing')}, not {expected.get(name, 'expected')}); delete the folder's "
                "`checkpoints` to train from the start."
            )
        for name, tensor in self._tensors().items():
            # Copied into memory that torch aligned: kernels may sum in another order at another alignment.
            tensor.copy_(torch.from_numpy(arrays[name]))
        self.step = checkpoint.step
        columns = {c.name: checkpoint.arrays[f"row.{c.name}"].tolist() for c in TRAINING.columns}
        self.rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        # The killed run may have written rows of steps after the checkpoint, which are now taken again.
        self.show()

    def show(self) -> None:
        """Rewrites the table of metrics."""
        self.out.write_table(TRAINING, self.columns())

    def columns(self) -> dict[str, np.ndarray]:
        """The metrics as columns of the table `training`."""
        return {
            c.name: np.array([row[c.name] for row in self.rows], c.type.to_pandas_dtype())
            for c in TRAINING.columns
        }

    def fail(self) -> None:
        """Sets `failure`, which ends training here, because the loss or a weight is no longer finite."""
        self.failure = UserError(
            f"train {self.out.key[:16]}: the loss is no longer a number after step {self.step}; set a lower "
            f"lr (now {self.config.lr:g}), a longer lr_warmup_steps (now {self.config.lr_warmup_steps}) or "
            "clip_grad_norm; the last good checkpoint is kept."
        )
