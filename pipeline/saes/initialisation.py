"""How SAE weights start.

Shapes: n tokens (or points), d channels, S latents.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pipeline.saes.base import Sae

DecoderBias = Literal["geometric_median", "geometric_median_reference", "mean", "zeros"]
WeightInit = Literal["reference", "transpose", "data_points"]

# Share of a row that points to a token, the rest is random: two rows may have the same token.
_DATA_POINT_SHARE = 0.8

_MAX_ITERATIONS = 100
_EPSILON = 1e-6
_TOLERANCE = 1e-20


def kaiming_uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Uniform in +-sqrt(6 / shape[1]): torch takes the fan-in from the last axis, so for a `[d, S]` encoder it
    is S (spec 2.2), and the reference's weights start that much smaller than a fan-in of d would have them."""
    bound = math.sqrt(6 / shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def normalise_rows_(W: Tensor) -> Tensor:
    """Scales every row to length 1, in place."""
    return W.div_(torch.linalg.vector_norm(W, dim=1, keepdim=True))


def reference_weights(d: int, n_latents: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`W_enc` [d, S] and, independent of it, `W_dec` [S, d] with rows of length 1 (spec 2.2)."""
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

    `encoder_scale` is the length of the encoder's rows where they start as the decoder's.
    """
    # On the CPU for every device, so that a seed means the same weights everywhere.
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
    """The point with the least summed distance to `points` [n, d]: [d] float64, by Weiszfeld's iteration.

    As the reference's package does it (spec 2.2): from the mean, at most 100 iterations, distances held above
    1e-6, until the objective stands still.
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

    `geometric_median_reference` is what the reference computes under the name: its points are whole images,
    all their tokens in one vector, and the median's positions are then averaged. The sample must hold whole
    images for that, `tokens_per_image` rows each.
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
