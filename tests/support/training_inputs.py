"""What tests of the training engine share: a small store to train on, configs of every objective, a way to die."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from patchsae.pipeline.core import registry
from patchsae.pipeline.core.progress import Bar, Reporter
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.training import objectives
from patchsae.pipeline.training.objective import TrainedSaeConfig
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store
from tests.support.sae_inputs import activations, index

N_TRAIN, N_TEST, TOKENS, WIDTH = 50, 14, 6, 8
OUTPUTS = ("sae.safetensors", "config.json", "tables/training.parquet")
KINDS = registry.variants(objectives, TrainedSaeConfig)


# A checkpoint after every step, or none but the last.
EVERY_STEP = Runtime(checkpoint_seconds=1e-9)
NO_STEP = Runtime(checkpoint_seconds=1e9)


class Killed(Exception):
    """Stands for the end of the process."""


class KillingReporter(Reporter):
    """Ends training once it has come to a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    @contextlib.contextmanager
    def bar(self, label: str, total: int, unit: str, done: int = 0) -> Iterator[Bar]:
        reporter = self

        class Killing(Bar):
            def _show(self) -> None:
                if self.done == reporter.at:
                    raise Killed

        yield Killing(label, total, unit, done)


def killed_at(step: int, runtime: Runtime = EVERY_STEP) -> Runtime:
    """The same runtime, under which training ends at a step with `Killed`."""
    return replace(runtime, reporter=KillingReporter(step))


def values() -> np.ndarray:
    """Sparse combinations of a few directions, so that there is something to learn: float16."""
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((12, WIDTH))
    strength = generator.exponential(1, (N_TRAIN + N_TEST, TOKENS, 12)) * (
        generator.random((N_TRAIN + N_TEST, TOKENS, 12)) < 0.2
    )
    return (strength @ directions + 1).astype(np.float16)


def inputs_in(store: Store) -> dict[str, Artifact]:
    """Those values as the inputs of the stage."""
    splits = ["train"] * N_TRAIN + ["test"] * N_TEST
    return {
        "activations": activations(store, values(), chunk_images=4, chunks_per_shard=2),
        "images": index(store, [i % 2 for i in range(N_TRAIN + N_TEST)], splits, ["a", "b"]),
    }


def config_of(kind: str = "relu_l1", **settings: Any) -> TrainedSaeConfig:
    """A config of an objective for them; dead latents come early, so that what revives them takes part."""
    defaults: dict[str, Any] = {
        "dataset": "d",
        "backbone": "b",
        "n_latents": 32,
        "batch_size": 40,
        "n_steps": 60,
        "lr": 3e-3,
        "lr_warmup_steps": 10,
        "dead_feature_window": 3,
    }
    if "k" in KINDS[kind].model_fields:
        defaults["k"] = 3
    return KINDS[kind](**{**defaults, **settings})


def bytes_of(artifact: Artifact) -> dict[str, bytes]:
    """Everything a `train` artifact is."""
    return {name: (artifact.path / name).read_bytes() for name in OUTPUTS}
