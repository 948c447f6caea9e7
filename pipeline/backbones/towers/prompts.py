"""Class embeddings from prompts, for backbones whose classes are texts.

Shapes: E embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

_TEXTS_PER_BATCH = 256


def class_embeddings(
    encode_text: Callable[[Sequence[str]], Tensor],
    names: Sequence[str],
    templates: Sequence[str],
    renormalise: bool,
    advance: Callable[[int], object] | None = None,
) -> Tensor:
    """The mean over templates of the text features scaled to length 1: [C, E].

    With `renormalise` the mean is scaled to length 1 too. Underscores in class names become spaces. `advance` is
    called after each batch of texts with their number.
    """
    texts = [template.format(name.replace("_", " ")) for name in names for template in templates]
    features = []
    for i in range(0, len(texts), _TEXTS_PER_BATCH):
        batch = texts[i : i + _TEXTS_PER_BATCH]
        features.append(encode_text(batch))
        if advance is not None:
            advance(len(batch))
    unit = normalize(torch.cat(features), dim=-1)
    mean = unit.view(len(names), len(templates), -1).mean(dim=1)
    return normalize(mean, dim=-1) if renormalise else mean
