"""Backbone `wise_ft`: weights between those of a backbone and of a checkpoint fine-tuned from it.

WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903):
`theta = (1 - alpha) theta_base + alpha theta_tuned`, tensor by tensor. alpha = 1 is the fine-tuned model
itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from patchsae.pipeline.backbones.backbone import (
    Backbone,
    BackboneConfig,
    BackboneWiring,
    ExtractConfig,
    Outline,
)
from patchsae.pipeline.backbones.checkpoints.check import header
from patchsae.pipeline.backbones.checkpoints.convert import to_open_clip
from patchsae.pipeline.backbones.checkpoints.read import file_fingerprint, read_state
from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.backbones.towers.shapes import shapes_of
from patchsae.pipeline.core.config import BackboneName, Location
from patchsae.pipeline.core.stage import Inputs
from patchsae.storage.errors import UserError


class WiseFtConfig(BackboneConfig):
    """Weights between those of a backbone and of a checkpoint that was fine-tuned from it (WiSE-FT)."""

    kind: Literal["wise_ft"] = "wise_ft"
    backbone: BackboneName
    """The backbone that was fine-tuned, of any kind."""
    checkpoint: Location
    """A local file (safetensors, or a torch file of tensors) with the fine-tuned state dict. Tensors that it
    does not have, such as those of a frozen text tower, are those of the backbone."""
    alpha: float = Field(0.5, ge=0, le=1)
    """Share of the fine-tuned weights."""
    _base: BackboneConfig | None = PrivateAttr(None)

    def resolved(self, wiring: BackboneWiring) -> Self:
        copy = self.model_copy()
        copy._base = wiring.backbone(self.backbone).with_extract(self.extract)
        return copy

    def with_extract(self, extract: ExtractConfig) -> Self:
        copy = super().with_extract(extract)
        # The innermost backbone builds the tower, so that the settings go all the way down.
        copy._base = None if self._base is None else self._base.with_extract(extract)
        return copy

    def inputs(self, wiring: BackboneWiring) -> dict[str, str]:
        base = wiring.backbone(self.backbone).inputs(wiring)
        nested = {f"base {role}": address for role, address in base.items()}
        return {"base": wiring.weights(self.backbone), **nested}

    def fingerprint(self) -> str:
        return file_fingerprint(self._path())

    def location(self) -> dict[str, str]:
        return {"checkpoint": str(self._path().absolute())}

    def build(self, inputs: Inputs) -> Backbone:
        self.outline()
        nested = {role.removeprefix("base "): artifact for role, artifact in inputs.items() if role != "base"}
        backbone = self._resolved_base().build(nested)
        state, tuned = backbone.state(), to_open_clip(read_state(self._path()), self._where())
        self._check(tuned, shapes_of(state))
        with torch.no_grad():
            for name, tensor in tuned.items():
                if state[name].is_floating_point():
                    # The tensors of `state` share the model's memory, so changing them changes the model.
                    state[name].lerp_(tensor.to(state[name].dtype), self.alpha)
        return backbone

    def outline(self) -> Outline:
        fingerprint = self.fingerprint()
        outline = self._resolved_base().outline()
        self._check(header(self._path(), fingerprint), outline.shapes)
        return outline

    def framing(self) -> Framing:
        return self._resolved_base().framing()

    def check_classes(self, names: Sequence[str], templates: Sequence[str]) -> None:
        self._resolved_base().check_classes(names, templates)

    def _check(self, tuned: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises UserError if a tensor of the checkpoint is not one of the base's, whose shapes are given."""
        is_whole = "logit_scale" in shapes
        for name, tensor in tuned.items():
            if name not in shapes and (is_whole or name.startswith("visual.")):
                raise UserError(f"{self._where()}: has a tensor `{name}`, which `{self.backbone}` has not.")
            if name in shapes and shapes[name] != tuple(tensor.shape):
                raise UserError(
                    f"{self._where()}: `{name}` is {tuple(tensor.shape)}, but {shapes[name]} in "
                    f"`{self.backbone}`; give a checkpoint of the same model."
                )

    def _resolved_base(self) -> BackboneConfig:
        assert self._base is not None, "a wise_ft backbone is built as the experiment resolved it"
        return self._base

    def _path(self) -> Path:
        return Path(self.checkpoint).expanduser()

    def _where(self) -> str:
        return f"checkpoint {self.checkpoint}"
