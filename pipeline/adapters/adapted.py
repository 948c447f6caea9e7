"""`AdaptedConfig`: the backbone that an adapter makes, which can stand wherever a backbone does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from patchsae.pipeline.adapters.adapt import load_adapter
from patchsae.pipeline.adapters.adapter import AdapterConfig
from patchsae.pipeline.backbones.backbone import (
    Backbone,
    BackboneConfig,
    BackboneWiring,
    ExtractConfig,
    Outline,
)
from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.core.config import Unhashed
from patchsae.pipeline.core.stage import Inputs

_BASE = "base "


class AdaptedConfig(BackboneConfig):
    """A backbone with an adapter of the experiment. `Dag` makes it from the adapter's entry."""

    kind: Literal["adapted"] = "adapted"
    adapter: Annotated[AdapterConfig, Unhashed("what was trained is an input")]
    base: Annotated[BackboneConfig, Unhashed("its weights are an input")]
    address: Annotated[str, Unhashed("what was trained is an input")]
    """The address of the node that trains the adapter."""

    @classmethod
    def of(cls, adapter: AdapterConfig, base: BackboneConfig, address: str) -> AdaptedConfig:
        """The backbone that `adapter` makes of `base`, cut where the adapter says, or else where `base` is."""
        extract = adapter.extract or base.extract
        return cls(extract=extract, adapter=adapter, base=base.with_extract(extract), address=address)

    def with_extract(self, extract: ExtractConfig) -> Self:
        return self.model_copy(update={"extract": extract, "base": self.base.with_extract(extract)})

    def inputs(self, wiring: BackboneWiring) -> dict[str, str]:
        nested = {_BASE + role: address for role, address in self.base.inputs(wiring).items()}
        return {"adapter": self.address, "base": wiring.weights(self.adapter.backbone), **nested}

    def fingerprint(self) -> str:
        return "adapted"

    def location(self) -> dict[str, str]:
        return self.base.location()

    def build(self, inputs: Inputs) -> Backbone:
        nested = {role.removeprefix(_BASE): one for role, one in inputs.items() if role.startswith(_BASE)}
        return self.adapter.apply(self.base.build(nested), load_adapter(inputs["adapter"]))

    def outline(self) -> Outline:
        outline = self.base.outline()
        self.adapter.check(outline)
        return self.adapter.adapted(outline)

    def framing(self) -> Framing:
        return self.base.framing()

    def check_classes(self, names: Sequence[str], templates: Sequence[str]) -> None:
        self.adapter.check_classes(self.base, names, templates)
