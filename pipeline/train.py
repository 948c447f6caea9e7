"""Stage `train`: SAEs trained over the shuffled stream.

The engine owns the stream, the optimiser, the schedule, checkpoints and metrics; the objective owns parameters
and gradients (`pipeline.saes.objective`). A step depends on the config, the data and the step's number alone, so
that training stopped anywhere and continued from a checkpoint ends in the same bytes.

SAEs that want the same stream are trained in one pass over it: each batch is read and moved once for all. They
know nothing of each other, so each becomes what it would have become alone.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline import distributed
from pipeline.index import split_range
from pipeline.metric_writers import open_writers
from pipeline.prefetch import prefetch
from pipeline.ranks import ALONE, Ranks
from pipeline.saes.base import save_sae
from pipeline.saes.objective import TrainedSaeConfig
from pipeline.stage import Inputs, Runtime, Stage
from pipeline.stream import Batch, Stream
from pipeline.trainee import Trainee
from pipeline.training_metrics import TRAINING, evaluate
from storage import tables
from storage.activations import Activations
from storage.artifacts import Artifact, Builder, Summary
from storage.errors import UserError

_LOADER_THREADS = 2
_EVAL_BATCH_TOKENS = 4096
# The table a user may be watching is rewritten about this often, and at every checkpoint.
_SECONDS_BETWEEN_TABLES = 5.0
# Broken weights show in the next loss; a look now and then, and at the end, is for those that no loss follows.
_STEPS_BETWEEN_CHECKS = 100


def stream_key(config: TrainedSaeConfig) -> Hashable:
    """SAEs of the same activations can share a pass if this is equal."""
    return config.split, config.tokens, config.mix, config.batch_size, config.shuffle_seed


def _run(config: TrainedSaeConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    [found] = run_together([config], inputs, [out], runtime)
    if isinstance(found, UserError):
        raise found
    return found


def run_together(
    configs: Sequence[TrainedSaeConfig], inputs: Inputs, outs: Sequence[Builder], runtime: Runtime
) -> list[Summary | UserError]:
    """Trains SAEs of one stream, each into its own artifact: its summary, or why it could not be trained."""
    failures: dict[int, UserError] = {}
    if runtime.processes > 1:
        # The ranks end with a checkpoint of the last step, from which there is nothing left to train here.
        _check_divides(configs[0], Activations(inputs["activations"]), inputs["images"], runtime.processes)
        failures = distributed.launch(configs, inputs, outs, runtime)
    trainees, stream = begin(configs, inputs, outs, runtime, ALONE)
    for i, trainee in enumerate(trainees):
        trainee.restore()
        trainee.failure = failures.get(i)
    train(trainees, stream, runtime, ALONE)
    return [trainee.failure or _finish(trainee, stream, inputs, runtime) for trainee in trainees]


def begin(
    configs: Sequence[TrainedSaeConfig],
    inputs: Inputs,
    outs: Sequence[Builder],
    runtime: Runtime,
    ranks: Ranks,
) -> tuple[list[Trainee], Stream]:
    """The SAEs at step 0, and the stream they are trained on."""
    first = configs[0]
    activations = Activations(inputs["activations"])
    if first.tokens == "prefix" and not activations.n_prefix_tokens:
        raise UserError("tokens `prefix`: this backbone has no prefix tokens; set tokens: patches.")
    rows = split_range(inputs["images"], first.split)
    for config in configs:
        # Looked up before hours of training, not after.
        split_range(inputs["images"], config.eval_split or config.split)
    stream = _stream(first, activations, rows)
    # The stream's first batch is for initialisation alone, as in the reference (spec 2.2).
    sample = stream.batch(0).to_float32(runtime.device)
    _check_finite(sample, activations.artifact)
    tokens_per_image = len(stream.tokens)
    trainees = [
        Trainee.begin(config, out, sample, tokens_per_image, ranks)
        for config, out in zip(configs, outs, strict=True)
    ]
    return trainees, stream


def train(trainees: Sequence[Trainee], stream: Stream, runtime: Runtime, ranks: Ranks) -> None:
    """Takes the steps that are left, each trainee's from its own step on. Every rank decides alike: what rank 0
    alone does, writing, changes nothing the others depend on."""
    left = [trainee for trainee in trainees if trainee.wants_steps()]
    if not left:
        return
    saved = shown = time.monotonic()
    first = min(trainee.step for trainee in left)
    last = max(trainee.config.n_steps for trainee in left)
    batches = prefetch(_on_device(stream, first + 1, last + 1, runtime.device, ranks))
    with contextlib.ExitStack() as opened:
        for trainee in left if ranks.rank == 0 else ():
            writers = open_writers(runtime.log, trainee.out, trainee.config, trainee.step)
            trainee.writers = opened.enter_context(writers)
        bar = opened.enter_context(runtime.reporter.bar("train", last, "steps", first))
        for step, (x, token) in enumerate(batches, first + 1):
            at_work = [t for t in left if t.step == step - 1 and t.wants_steps()]
            for trainee in at_work:
                trainee.take_step(x, token)
                is_last = trainee.step == trainee.config.n_steps
                if (is_last or step % _STEPS_BETWEEN_CHECKS == 0) and not trainee.is_finite():
                    trainee.fail()
                if trainee.failure is not None:
                    _check_finite(x, stream.activations.artifact)
            now = time.monotonic()
            due = now - saved >= runtime.checkpoint_seconds
            for trainee in at_work:
                if (
                    ranks.rank == 0
                    and (due or trainee.step == trainee.config.n_steps)
                    and trainee.is_finite()
                ):
                    trainee.save()
                elif ranks.rank == 0 and now - shown >= _SECONDS_BETWEEN_TABLES:
                    trainee.show()
            saved = time.monotonic() if due else saved
            shown = now if due or now - shown >= _SECONDS_BETWEEN_TABLES else shown
            bar.advance(note=_note(at_work))
            if not any(trainee.wants_steps() for trainee in left):
                break


def _note(trainees: Sequence[Trainee]) -> str:
    if len(trainees) != 1:
        return f"{len(trainees)} SAEs"
    return f"loss {trainees[0].loss:.4g}, L0 {trainees[0].l0:.1f}"


def _on_device(
    stream: Stream, first: int, last: int, device: str, ranks: Ranks
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's tokens of every batch, [n, d] float32, and their places in their images, [n] int64."""
    rows = ranks.slice_of(stream.tokens_per_batch)
    for batch in stream.batches(first, last, _LOADER_THREADS):
        mine = Batch(batch.activations[rows], batch.image[rows], batch.token[rows], batch.dtype)
        yield mine.to_float32(device), torch.from_numpy(mine.token.astype(np.int64)).to(device)


def _finish(trainee: Trainee, stream: Stream, inputs: Inputs, runtime: Runtime) -> Summary:
    """Writes what is kept of a trained SAE."""
    config, sae = trainee.config, trainee.sae()
    save_sae(trainee.out, sae, config.key_config())
    tables.write(trainee.out, TRAINING, trainee.columns())
    rows = split_range(inputs["images"], config.eval_split or config.split)
    final = evaluate(sae, _eval_batches(config, stream.activations, rows, runtime.device))
    return {
        **final,
        "n_latents": sae.n_latents,
        "n_steps": trainee.step,
        "loss": trainee.rows[-1]["loss"],
    }


def _stream(config: TrainedSaeConfig, activations: Activations, rows: range) -> Stream:
    return Stream(activations, rows, config.batch_size, config.shuffle_seed, config.tokens, config.mix)


def _check_divides(
    config: TrainedSaeConfig, activations: Activations, images: Artifact, n_ranks: int
) -> None:
    n = _stream(config, activations, split_range(images, config.split)).tokens_per_batch
    if n % n_ranks:
        raise UserError(
            f"a batch has {n:,} tokens, which {n_ranks} processes cannot share equally; change batch_size or "
            "--processes."
        )


def _check_finite(x: Tensor, activations: Artifact) -> None:
    if not math.isfinite(x.sum(dtype=torch.float64).item()):
        raise UserError(
            f"{activations.path}: holds activations that are not finite; `patchsae verify --discard` drops "
            "what is damaged and the next run computes that again."
        )


def _eval_batches(
    config: TrainedSaeConfig, activations: Activations, rows: range, device: str
) -> Iterator[Tensor]:
    """A shuffled sample of `eval_tokens` tokens, or every token if there are fewer."""
    stream = Stream(activations, rows, _EVAL_BATCH_TOKENS, config.shuffle_seed, config.tokens)
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


STAGE = Stage(
    "train", 4, _run, run_together=run_together, together_key=stream_key, predict_bytes=_predict_bytes
)
