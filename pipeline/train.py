"""Stage `train`: an SAE trained over the shuffled stream.

The engine owns the stream, the optimiser, the schedule, checkpoints and metrics; the objective owns parameters
and gradients (`pipeline.saes.objective`). A step depends on the config, the data and the step's number alone, so
that training stopped anywhere and continued from a checkpoint ends in the same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipeline.adam import Adam
from pipeline.index import split_range
from pipeline.saes.base import save_sae
from pipeline.saes.objective import Gradients, Objective, TrainedSaeConfig
from pipeline.stage import Inputs, Runtime, Stage
from pipeline.stream import Batch, Stream
from pipeline.training_metrics import TRAINING, Reconstruction, evaluate
from storage import tables
from storage.activations import Activations
from storage.artifacts import Artifact, Builder, Summary
from storage.checkpoints import Checkpoint, Checkpoints
from storage.errors import UserError

_LOADER_THREADS = 2
_EVAL_BATCH_TOKENS = 4096
# The table a user may be watching is rewritten about this often, and at every checkpoint.
_SECONDS_BETWEEN_TABLES = 5.0


@dataclass
class Training:
    """Everything the next step depends on, and the metrics so far."""

    objective: Objective
    optimiser: Adam
    step: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **{f"parameter.{name}": tensor for name, tensor in self.objective.parameters.items()},
            **{f"adam.{name}": tensor for name, tensor in self.optimiser.moments.items()},
            **{f"state.{name}": tensor for name, tensor in self.objective.state.items()},
        }

    def save(self, checkpoints: Checkpoints) -> None:
        arrays = {name: tensor.cpu().numpy() for name, tensor in self._tensors().items()}
        arrays |= {f"row.{name}": values for name, values in self.columns().items()}
        checkpoints.save(self.step, arrays, {})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Takes up a state that `save` wrote."""
        for name, tensor in self._tensors().items():
            # Copied into torch's own memory: kernels may sum in another order at another alignment.
            tensor.copy_(torch.from_numpy(checkpoint.arrays[name]))
        self.step = checkpoint.step
        columns = {c.name: checkpoint.arrays[f"row.{c.name}"].tolist() for c in TRAINING.columns}
        self.rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def columns(self) -> dict[str, np.ndarray]:
        """The metrics as columns of the table `training`."""
        return {
            c.name: np.array([row[c.name] for row in self.rows], c.type.to_pandas_dtype())
            for c in TRAINING.columns
        }


def learning_rate(config: TrainedSaeConfig, step: int) -> float:
    """`lr * min(1, (step + 1) / lr_warmup_steps)` at a step counted from 0 (spec 2.5)."""
    return config.lr * min(1.0, (step + 1) / max(1, config.lr_warmup_steps))


def _run(config: TrainedSaeConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    activations = Activations(inputs["activations"])
    if config.tokens == "prefix" and not activations.n_prefix_tokens:
        raise UserError("tokens `prefix`: this backbone has no prefix tokens; set tokens: patches.")
    rows = split_range(inputs["images"], config.split)
    # Looked up before hours of training, not after.
    eval_rows = rows if config.eval_split is None else split_range(inputs["images"], config.eval_split)
    stream = Stream(activations, rows, config.batch_size, config.seed, config.tokens, config.mix)
    # The stream's first batch is for initialisation alone, as in the reference (spec 2.2).
    sample = stream.batch(0).to_float32(runtime.device)
    _check_finite(sample, activations.artifact)
    objective = config.objective(sample, len(stream.tokens))
    training = Training(objective, Adam(objective.parameters))
    checkpoint = Checkpoints(out.path).latest()
    if checkpoint is not None:
        training.restore(checkpoint)
        # A killed run may have shown rows that come again.
        tables.write(out, TRAINING, training.columns())
    _train(config, training, stream, out, runtime)
    sae = training.objective.sae()
    save_sae(out, sae, {**config.key_config(), "width": sae.width, "n_latents": sae.n_latents})
    tables.write(out, TRAINING, training.columns())
    final = evaluate(sae, _eval_batches(config, activations, eval_rows, runtime.device))
    return {**final, "n_latents": sae.n_latents, "n_steps": training.step, "loss": training.rows[-1]["loss"]}


def _train(
    config: TrainedSaeConfig, training: Training, stream: Stream, out: Builder, runtime: Runtime
) -> None:
    """Takes the steps that are left."""
    checkpoints = Checkpoints(out.path)
    saved = shown = time.monotonic()
    batches = stream.batches(training.step + 1, config.n_steps + 1, _LOADER_THREADS)
    with runtime.reporter.bar("train", config.n_steps, "steps", training.step) as bar:
        for batch in batches:
            found = _step(config, training, batch, stream, runtime.device)
            now = time.monotonic()
            checkpoint_due = now - saved >= runtime.checkpoint_seconds or training.step == config.n_steps
            if checkpoint_due:
                _check_parameters(config, training)
                training.save(checkpoints)
                saved = time.monotonic()
            if checkpoint_due or now - shown >= _SECONDS_BETWEEN_TABLES:
                tables.write(out, TRAINING, training.columns())
                shown = now
            bar.advance(note=f"loss {found.loss:.4g}, L0 {found.l0:.1f}")


def _step(
    config: TrainedSaeConfig, training: Training, batch: Batch, stream: Stream, device: str
) -> Gradients:
    """One optimiser step. Raises UserError if the loss is no number, leaving the last checkpoint as it was."""
    x = batch.to_float32(device)
    token = torch.from_numpy(batch.token.astype(np.int64)).to(device)
    lr = learning_rate(config, training.step)
    found = training.objective.gradients(x, token)
    if not math.isfinite(found.loss):
        _check_finite(x, stream.activations.artifact)
        raise _diverged(config, training)
    training.step += 1
    training.optimiser.step(lr, training.step)
    if training.step % config.log_every == 0 or training.step in (1, config.n_steps):
        reconstruction = Reconstruction()
        reconstruction.add(x, found.x_hat)
        training.rows.append(
            {
                "step": training.step,
                "n_tokens": training.step * stream.tokens_per_batch,
                "loss": found.loss,
                "mse": found.mse,
                "l1": found.l1,
                "l1_norm": found.l1_norm,
                "ghost": found.ghost,
                "l0": found.l0,
                "explained_variance": reconstruction.explained_variance,
                "explained_variance_uncentred": reconstruction.explained_variance_uncentred,
                "n_dead": training.objective.n_dead(),
                "lr": lr,
            }
        )
    return found


def _check_finite(x: Tensor, activations: Artifact) -> None:
    if not torch.isfinite(x).all():
        raise UserError(
            f"{activations.path}: holds activations that are not finite; `patchsae verify --discard` drops "
            "what is damaged and the next run computes that again."
        )


def _check_parameters(config: TrainedSaeConfig, training: Training) -> None:
    """A checkpoint of broken weights would replace the last good one."""
    if not all(torch.isfinite(p).all() for p in training.objective.parameters.values()):
        raise _diverged(config, training)


def _diverged(config: TrainedSaeConfig, training: Training) -> UserError:
    return UserError(
        f"train: the loss is no longer a number after step {training.step}; set a lower lr (now {config.lr:g}) "
        f"or a longer lr_warmup_steps (now {config.lr_warmup_steps})."
    )


def _eval_batches(
    config: TrainedSaeConfig, activations: Activations, rows: range, device: str
) -> Iterator[Tensor]:
    """A shuffled sample of `eval_tokens` tokens, or every token if there are fewer."""
    stream = Stream(activations, rows, _EVAL_BATCH_TOKENS, config.seed, config.tokens)
    n_left = min(config.eval_tokens, stream.n_tokens)
    for batch in stream.batches(0, -(-n_left // _EVAL_BATCH_TOKENS), _LOADER_THREADS):
        yield batch.to_float32(device)[:n_left]
        n_left -= _EVAL_BATCH_TOKENS


def _predict_bytes(config: TrainedSaeConfig, inputs: Mapping[str, Artifact | None]) -> int | None:
    """The weights, and the checkpoints that lie beside them while it trains: three at most, of weights and two
    moments each. None while the width is not known."""
    extracted = inputs["activations"]
    if extracted is None:
        return None
    width = Activations(extracted).width
    n_latents = config.count_latents(width)
    return 4 * (2 * width * n_latents + n_latents + width) * (1 + 3 * 3)


STAGE = Stage("train", 2, _run, predict_bytes=_predict_bytes)
