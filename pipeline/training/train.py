"""Stage `train`: trains SAEs on the shuffled stream of activations.

This module owns the stream and the loop over steps. A member (`pipeline.training.member`) owns the optimiser,
the schedule, checkpoints and metrics of one SAE, and its objective (`pipeline.training.objective`) owns
parameters and gradients. A step depends only on the config, the data and the step's number, so training that
is stopped anywhere and continued from a checkpoint ends in the same bytes.

SAEs that need the same stream are trained in one pass over it, so that each batch is read and moved to the
device once. They share nothing else, so each becomes the same SAE as when it is trained alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from patchsae.pipeline.activations.stream import Batch, Stream
from patchsae.pipeline.core.interrupts import Abandoned, abandonable, deferred_signals
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Upstreams
from patchsae.pipeline.core.prefetch import prefetch
from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
from patchsae.pipeline.images.tables import expected_rows, split_range
from patchsae.pipeline.saes.sae import save_sae
from patchsae.pipeline.training import torchrun
from patchsae.pipeline.training.effort import expected_l0, step_amounts
from patchsae.pipeline.training.member import Member
from patchsae.pipeline.training.metrics import TRAINING
from patchsae.pipeline.training.objective import TrainedSaeConfig
from patchsae.pipeline.training.process_group import ALONE, Ranks
from patchsae.pipeline.training.writers import open_writers
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary
from patchsae.storage.tables import expected_bytes

_LOADER_THREADS = 2
# The table `training` is rewritten about this often, for those who watch it, and at every checkpoint.
_SECONDS_BETWEEN_TABLES = 5.0
# A weight that is not finite usually shows in the next loss. All weights are also checked every so many
# steps, and after the last step, which no loss follows.
_STEPS_BETWEEN_CHECKS = 100
# Fewer weights than this are drawn, read or written within two seconds.
_MANY_WEIGHTS = 10_000_000
# Bytes of a row of the table `training`, and of config.json.
_BYTES_PER_ROW, _CONFIG_BYTES = 90, 1_000


def stream_key(config: TrainedSaeConfig) -> Hashable:
    """SAEs of the same activations can be trained in one pass if this value is equal."""
    return config.split, config.tokens, config.mix, config.batch_size, config.shuffle_seed


def _run(config: TrainedSaeConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    [found] = run_together([config], inputs, [out], runtime)
    if isinstance(found, UserError):
        raise found
    return found


def run_together(
    configs: Sequence[TrainedSaeConfig], inputs: Inputs, outs: Sequence[Builder], runtime: Runtime
) -> list[Summary | UserError]:
    """Trains SAEs that share a stream, each into its own artifact.

    Returns for each its summary, or the reason why it could not be trained.
    """
    failures: dict[int, UserError] = {}
    if runtime.processes > 1:
        # The ranks leave a checkpoint of the last step, so `train` below has no step left to take.
        _check_divides(configs[0], Activations(inputs["activations"]), inputs["images"], runtime.processes)
        failures = torchrun.launch(configs, inputs, outs, runtime)
    members, stream = begin(configs, inputs, outs, runtime, ALONE)
    with _bars_of(members, runtime).bar("train, checkpoints", len(members), "SAEs") as bar:
        for i, member in enumerate(bar.over(members)):
            member.restore()
            member.failure = failures.get(i)
    train(members, stream, runtime, ALONE)
    with _bars_of(members, runtime).bar("train, writing", len(members), "SAEs") as bar:
        return [member.failure or _finish(member) for member in bar.over(members)]


def _bars_of(members: Sequence[Member], runtime: Runtime) -> Reporter:
    """The reporter for reading and writing SAEs: it shows nothing for small ones."""
    n_weights = sum(p.numel() for member in members for p in member.objective.parameters.values())
    return runtime.reporter if n_weights > _MANY_WEIGHTS else Reporter()


def begin(
    configs: Sequence[TrainedSaeConfig],
    inputs: Inputs,
    outs: Sequence[Builder],
    runtime: Runtime,
    ranks: Ranks,
) -> tuple[list[Member], Stream]:
    """The SAEs at step 0 and the stream that they are trained on."""
    first = configs[0]
    activations = Activations(inputs["activations"])
    if first.tokens == "prefix" and not activations.layout.n_prefix:
        raise _no_prefix()
    rows = split_range(inputs["images"], first.split)
    stream = _stream(first, activations, rows)
    # The stream's first batch is used only for initialisation, as in the reference (spec 2.2).
    batch = stream.batch(0)
    sample = batch.to_float32(runtime.device)
    _check_finite(sample, batch.image, activations)
    tokens_per_image = len(stream.tokens)
    # The geometric median reads the whole batch up to a hundred times.
    n_weights = sum(2 * sample.shape[1] * config.count_latents(sample.shape[1]) for config in configs)
    is_long = ranks.rank == 0 and n_weights + sample.numel() > _MANY_WEIGHTS
    bars = runtime.reporter if is_long else Reporter()
    with bars.bar("train, start", len(configs), "SAEs") as bar:
        members = [
            Member.begin(config, out, sample, tokens_per_image, ranks)
            for config, out in bar.over(list(zip(configs, outs, strict=True)))
        ]
    return members, stream


def _no_prefix() -> UserError:
    return UserError("tokens `prefix`: this backbone has no prefix tokens; set tokens: patches.")


def train(members: Sequence[Member], stream: Stream, runtime: Runtime, ranks: Ranks) -> None:
    """Takes the remaining steps of all members, each from its own step on.

    All ranks decide alike. Only rank 0 writes, and nothing that another rank does depends on what it writes.

    SIGINT, SIGTERM and SIGHUP end it with a checkpoint of every SAE; then the signal has its usual effect. A
    process that trains alone gives up the present step, unless its weights are being updated. Ranks take it to
    its end, since they wait for each other in it.
    """
    left = [member for member in members if member.wants_steps()]
    if not left:
        return
    begun = saved = shown = time.monotonic()
    first = min(member.step for member in left)
    last = max(member.config.n_steps for member in left)
    batches = prefetch(_on_device(stream, first + 1, last + 1, runtime.device, ranks))
    with contextlib.ExitStack() as opened:
        deferred = opened.enter_context(deferred_signals())
        for member in left if ranks.rank == 0 else ():
            writers = open_writers(
                runtime.log,
                member.out.logs_folder(),
                f"{member.config.key_config()['kind']}-{member.out.key[:16]}",
                member.out.key,
                member.config.model_dump(mode="json"),
                member.step,
            )
            member.writers = opened.enter_context(writers)
        bar = opened.enter_context(runtime.reporter.bar("train", last, "steps", first))
        for step, (x, token, image) in enumerate(batches, first + 1):
            at_work = [t for t in left if t.step == step - 1 and t.wants_steps()]
            for member in at_work:
                try:
                    with abandonable(deferred) if ranks.size == 1 else contextlib.nullcontext():
                        member.take_step(x, token)
                except Abandoned:
                    break
                is_last = member.step == member.config.n_steps
                if (is_last or step % _STEPS_BETWEEN_CHECKS == 0) and not member.is_finite():
                    member.fail()
                if member.failure is not None:
                    _check_finite(x, image, stream.activations)
            # A signal may reach some ranks only, or each at another step: all end after the same one.
            ends = ranks.agree(deferred.signal is not None, runtime.device)
            now = time.monotonic()
            due = ends or now - saved >= runtime.checkpoint_seconds
            if ends:
                at = min((member.step for member in at_work), default=step)
                bar.advance(0, f"interrupted, writing a checkpoint of step {at:,}")
            for member in at_work:
                if ranks.rank == 0 and (due or member.step == member.config.n_steps) and member.is_finite():
                    member.save()
                elif ranks.rank == 0 and now - shown >= _SECONDS_BETWEEN_TABLES:
                    member.show()
            saved = time.monotonic() if due else saved
            shown = now if due or now - shown >= _SECONDS_BETWEEN_TABLES else shown
            per_second = (step - first) * stream.tokens_per_batch / max(now - begun, 1e-9)
            if all(member.step == step for member in at_work if member.failure is None):
                bar.advance(note=f"{_note(at_work)}, {per_second:,.0f} tokens/s")
            if ends or not any(member.wants_steps() for member in left):
                break


def _note(members: Sequence[Member]) -> str:
    if len(members) != 1:
        return f"{len(members)} SAEs"
    return f"loss {members[0].loss:.4g}, L0 {members[0].l0:.1f}"


def _on_device(
    stream: Stream, first: int, last: int, device: str, ranks: Ranks
) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
    """This rank's tokens of every batch: [n, d] float32, their places in their images and the images, [n] int64."""
    rows = ranks.slice_of(stream.tokens_per_batch)
    for batch in stream.batches(first, last, _LOADER_THREADS):
        mine = Batch(batch.activations[rows], batch.image[rows], batch.token[rows], batch.dtype)
        yield mine.to_float32(device), torch.from_numpy(mine.token.astype(np.int64)).to(device), mine.image


def _finish(member: Member) -> Summary:
    """Writes the weights and the table of metrics of a trained SAE."""
    config, sae = member.config, member.sae()
    save_sae(member.out, sae, config.key_config())
    member.out.write_table(TRAINING, member.columns())
    last = member.rows[-1]
    return {"n_latents": sae.n_latents, "n_steps": member.step, "loss": last["loss"], "l0": last["l0"]}


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


def _check_finite(x: Tensor, image: np.ndarray, activations: Activations) -> None:
    """Raises UserError, naming the shard, if a token of `x` [n, d], of the images `image` [n], is not finite."""
    bad = torch.isfinite(x).all(dim=1).logical_not().cpu().numpy()
    if bad.any():
        raise activations.not_finite(image[bad])


def _predict(config: TrainedSaeConfig, inputs: Upstreams) -> Prediction:
    activations, images = inputs["activations"], inputs["images"]
    n_images = expected_rows(images, config.split)
    tokens, width = activations.fact("tokens_per_image"), activations.fact("width")
    if config.tokens == "prefix" and activations.fact("n_prefix_tokens") == 0:
        raise _no_prefix()
    if width is None:
        return Prediction()
    n_latents = config.count_latents(width)
    config.check(n_latents)
    n_weights = 2 * width * n_latents
    n_rows = config.n_steps // config.log_every + 2
    n_bytes = (
        MANIFEST_BYTES
        + _CONFIG_BYTES
        + 4 * (n_weights + 2 * n_latents + width)
        + expected_bytes(TRAINING, n_rows, _BYTES_PER_ROW)
    )
    # A checkpoint has the weights, their two moments, and when each latent fired last. While the third one is
    # written, two are there; the file of the weights is written before they are deleted.
    checkpoint = 4 * (3 * (n_weights + 2 * n_latents + width) + 2 * n_latents) + _BYTES_PER_ROW * n_rows
    facts = {
        "n_latents": n_latents,
        "width": width,
        "n_steps": config.n_steps,
        "l0": expected_l0(config, n_latents),
    }
    if tokens is None:
        return Prediction(facts, n_bytes, 3 * checkpoint, None, config.n_steps)
    per_step = config.batch_size * (tokens if config.mix == "images" else 1)
    if n_images is not None:
        per_step = min(per_step, n_images * tokens)
    effort = step_amounts(config, width, n_latents, per_step)
    return Prediction(facts, n_bytes, 3 * checkpoint, effort, config.n_steps)


STAGE = Stage(
    name="train",
    version=5,
    section="saes",
    description="SAEs.",
    run=_run,
    run_together=run_together,
    together_key=stream_key,
    predict=_predict,
)
