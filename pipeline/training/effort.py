"""How much work training is, and how many latents the SAE will have on, for predictions.

A fresh ReLU SAE has half of its latents on. Until that has changed, a step is five dense products.
"""

from __future__ import annotations

import math

from patchsae.pipeline.core.machine import memory, products
from patchsae.pipeline.core.prediction import Probe
from patchsae.pipeline.training.objective import TrainedSaeConfig

# The number of latents per token that is taken for trained SAEs whose objective does not set it.
_L0 = 64
# When the learning rates of all steps so far add up to this, few latents are still on: Adam moves every weight by
# about the rate in each step (ReLU-L1, gated and JumpReLU SAEs on the shapes; benchmarks/LOG.md).
_SETTLED = 0.1
# Bytes per weight that Adam reads and writes, with the gradient, beside clearing and normalising rows.
_ADAM = 48
# How often the vectors of a token's latents are read or written: twice for the decoder, and for each gradient.
_PASSES = 8
# The products of a dense step: encoding, decoding, and three for the gradients.
_DENSE_PRODUCTS = 5


def n_dense_steps(config: TrainedSaeConfig) -> int:
    """The number of the first steps in which about `fresh_density` of all latents are on."""
    if not config.fresh_density:
        return 0
    # During the warm-up of w steps the rates of s steps add up to lr s^2 / (2 w), and by its end to lr w / 2.
    warmup = max(1, config.lr_warmup_steps)
    after = _SETTLED / config.lr - warmup / 2
    settled = warmup + after if after > 0 else math.sqrt(2 * _SETTLED * warmup / config.lr)
    return min(config.n_steps, math.ceil(settled))


def expected_l0(config: TrainedSaeConfig, n_latents: int) -> float:
    """About how many latents of the trained SAE are on per token."""
    if config.fresh_density and n_dense_steps(config) == config.n_steps:
        return config.fresh_density * n_latents
    return _l0_of_few(config, n_latents)


def _l0_of_few(config: TrainedSaeConfig, n_latents: int) -> int:
    """About how many latents are on per token once that are few."""
    return min(getattr(config, "k", _L0), n_latents)


def step_amounts(
    config: TrainedSaeConfig, width: int, n_latents: int, n_tokens: int
) -> list[tuple[Probe, float]]:
    """All steps, on `n_tokens` tokens each.

    In a sparse step one dense product finds the latents, and the rest follows those that are on.
    """
    l0 = _l0_of_few(config, n_latents)
    n_dense = n_dense_steps(config)
    n_products = config.n_steps + (_DENSE_PRODUCTS - 1) * n_dense
    dense = float(n_tokens) * width * n_latents
    moved = (
        (config.n_steps - n_dense) * _PASSES * 4.0 * n_tokens * width * l0
        + config.n_steps * _ADAM * 2.0 * width * n_latents
        + n_products * 8.0 * n_tokens * n_latents
    )
    return [(products(config.precision, width), n_products * dense), (memory(), moved)]
