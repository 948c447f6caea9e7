"""How much work a step of training is, for predictions."""

from __future__ import annotations

from patchsae.pipeline.core.machine import Probe, memory, products
from patchsae.pipeline.training.objective import TrainedSaeConfig

# The number of latents per token that is taken for objectives which do not set it.
_L0 = 64
# Bytes per weight that Adam reads and writes, with the gradient, beside clearing and normalising rows.
_ADAM = 48
# How often the vectors of a token's latents are read or written: twice for the decoder, and for each gradient.
_PASSES = 8


def step_amounts(
    config: TrainedSaeConfig, width: int, n_latents: int, n_tokens: int, n_steps: int
) -> list[tuple[Probe, float]]:
    """`n_steps` steps on `n_tokens` tokens: one dense product finds the latents, the rest follows those that fire."""
    l0 = min(getattr(config, "k", _L0), n_latents)
    dense = float(n_tokens) * width * n_latents
    moved = (
        _PASSES * 4.0 * n_tokens * width * l0 + _ADAM * 2.0 * width * n_latents + 8.0 * n_tokens * n_latents
    )
    return [(products(config.precision, width), n_steps * dense), (memory(), n_steps * moved)]
