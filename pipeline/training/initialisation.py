"""The initial weights of trained SAEs, which `pipeline.training.objective` takes from `start`.

Shapes: n tokens (or points), d channels, S latents.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from patchsae.pipeline.core.config import AlsoNames
from patchsae.pipeline.saes.sae import Sae

DecoderBias = Literal["geometric_median", "geometric_median_reference", "mean", "zeros"]
WeightInit = Literal["reference", "transpose", "data_points"]

ENCODER_SCALES = {"live_latents": 1.0, "low_fvu": 0.1}
"""The named values of `encoder_scale`. docs/training.md has the figures of both."""


def _of_its_name(value: Any) -> Any:
    """The number of a named scale, so that a key is the same for the name and for the number."""
    if not isinstance(value, str):
        return value
    try:
        return ENCODER_SCALES[value] if value in ENCODER_SCALES else float(value)
    except ValueError:
        raise ValueError(f"write {' or '.join(ENCODER_SCALES)}, or a number above 0") from None


EncoderScale = Annotated[float, BeforeValidator(_of_its_name), Field(gt=0), AlsoNames(tuple(ENCODER_SCALES))]
"""A norm above 0, or one of the names in `ENCODER_SCALES`."""

# Weight of the token in a decoder row of `data_points`. The rest is random: two rows may get the same token.
_DATA_POINT_SHARE = 0.8

_MAX_ITERATIONS = 100
_EPSILON = 1e-6
_TOLERANCE = 1e-20


def kaiming_uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Uniform values in +-sqrt(6 / shape[1]).

    torch takes the fan-in from the last axis, so it is S for an encoder [d, S] (spec 2.2). The reference's
    weights therefore start smaller, by a factor of sqrt(d / S), than with a fan-in of d.
    """
    bound = math.sqrt(6 / shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def normalise_rows_(W: Tensor) -> Tensor:
    """Scales every row to norm 1, in place."""
    return W.div_(torch.linalg.vector_norm(W, dim=1, keepdim=True))


def reference_weights(d: int, n_latents: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`W_enc` [d, S] and an independent `W_dec` [S, d] with rows of norm 1 (spec 2.2)."""
    W_enc = kaiming_uniform((d, n_latents), generator)
    return W_enc, normalise_rows_(kaiming_uniform((n_latents, d), generator))


def start(
    kind: WeightInit,
    bias: DecoderBias,
    sample: Tensor,
    n_latents: int,
    seed: int,
    tokens_per_image: int,
    encoder_scale: float,
) -> Sae:
    """The weights at step 0, on the device of `sample` [n, d], a batch of tokens.

    `encoder_scale` is the norm of the encoder's rows, which start as multiples of the decoder's; `reference`
    ignores it, because its encoder is independent of its decoder.
    """
    # Drawn on the CPU whatever the device is, so that a seed gives the same weights everywhere.
    generator = torch.Generator().manual_seed(seed)
    device, sample = str(sample.device), sample.cpu()
    d = sample.shape[1]
    b_dec = decoder_bias(bias, sample, tokens_per_image)
    W_enc, W_dec = reference_weights(d, n_latents, generator)
    if kind == "data_points":
        chosen = torch.randint(len(sample), (n_latents,), generator=generator)
        points = normalise_rows_(sample[chosen] - b_dec + 1e-12)
        W_dec = normalise_rows_(W_dec.mul_(1 - _DATA_POINT_SHARE).add_(points, alpha=_DATA_POINT_SHARE))
    if kind != "reference":
        W_enc = W_dec.T * encoder_scale
    return Sae(W_enc, torch.zeros(n_latents), W_dec, b_dec).to(device)


def geometric_median(points: Tensor) -> Tensor:
    """The point with the smallest sum of distances to `points` [n, d]: [d] float64, by Weiszfeld's iteration.

    As in the reference's package (spec 2.2), it starts from the mean, takes distances below 1e-6 as 1e-6, and
    stops after 100 iterations or once the mean distance changes by at most 1e-20 of itself.
    """
    points = points.double()
    median = points.mean(dim=0)
    distances = torch.linalg.vector_norm(points - median, dim=1)
    objective = distances.mean()
    for _ in range(_MAX_ITERATIONS):
        weights = 1 / distances.clamp(min=_EPSILON)
        median = weights @ points / weights.sum()
        distances = torch.linalg.vector_norm(points - median, dim=1)
        previous, objective = objective, distances.mean()
        if abs(previous - objective) <= _TOLERANCE * objective:
            break
    return median


def decoder_bias(kind: DecoderBias, sample: Tensor, tokens_per_image: int) -> Tensor:
    """`b_dec` [d] float32 from a batch of tokens [n, d].

    `geometric_median_reference` is what the reference computes under this name: each point is a whole image,
    all its tokens in one vector, and the median is then averaged over token positions. For that, the sample
    must hold whole images of `tokens_per_image` rows each.
    """
    d = sample.shape[1]
    match kind:
        case "zeros":
            return sample.new_zeros(d)
        case "mean":
            return sample.double().mean(dim=0).float()
        case "geometric_median":
            return geometric_median(sample).float()
        case "geometric_median_reference":
            images = sample.reshape(-1, tokens_per_image * d)
            return geometric_median(images).view(tokens_per_image, d).mean(dim=0).float()
