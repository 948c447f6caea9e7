"""`LearnedClasses`: a backbone with learned class embeddings, for adapters that learn these and no prompts.

Shapes: E embedding, C classes that were asked for, L classes that were learned.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from patchsae.pipeline.backbones.backbone import Backbone

_EMBEDDINGS, _NAMES = "class_embeddings", "class_names"


def tensors_of(names: Sequence[str], embeddings: Tensor) -> dict[str, Tensor]:
    """The classes that were learned, as tensors: their embeddings [L, E], and their names as bytes of JSON."""
    data = json.dumps(list(names)).encode()
    return {_EMBEDDINGS: embeddings, _NAMES: torch.frombuffer(bytearray(data), dtype=torch.uint8)}


class LearnedClasses:
    """Implements `Backbone`. The embeddings of learned classes are its own, those of others the backbone's."""

    def __init__(self, backbone: Backbone, tensors: Mapping[str, Tensor]) -> None:
        self._backbone = backbone
        self._tensors = dict(tensors)
        names: list[str] = json.loads(bytes(tensors[_NAMES].tolist()))
        self._places: dict[str, list[int]] = defaultdict(list)
        for place, name in enumerate(names):
            self._places[name].append(place)
        self.settings: dict[str, Any] = {**backbone.settings, "adapter": "learned classes"}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def class_embeddings(
        self,
        names: Sequence[str],
        templates: Sequence[str],
        renormalise: bool,
        advance: Callable[[int], object] | None = None,
    ) -> Tensor:
        """As in `Backbone`. A learned class is found by its name; of several with one name, in their order."""
        found = self._backbone.class_embeddings(names, templates, renormalise, advance).clone()
        learned = normalize(self._tensors[_EMBEDDINGS].to(found), dim=-1)
        n_seen: dict[str, int] = defaultdict(int)
        for row, name in enumerate(names):
            places = self._places.get(name, [])
            if n_seen[name] < len(places):
                found[row] = learned[places[n_seen[name]]]
            n_seen[name] += 1
        return found

    def state(self) -> dict[str, Tensor]:
        adapter = {f"adapter.{name}": tensor for name, tensor in self._tensors.items()}
        return {**self._backbone.state(), **adapter}

    def to(self, device: str) -> Self:
        self._backbone = self._backbone.to(device)
        return self
