"""Backbone `wise_ft`: weights between those of a backbone and of a checkpoint fine-tuned from it.

WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903):
`theta = (1 - alpha) theta_base + alpha theta_tuned`, tensor by tensor. alpha = 1 is the fine-tuned model
itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, PrivateAttr
from safetensors import SafetensorError

from patchsae.pipeline.backbones.backbone import (
    Backbone,
    BackboneConfig,
    BackboneWiring,
    ExtractConfig,
    Outline,
)
from patchsae.pipeline.backbones.models.open_clip import check_checkpoint, file_fingerprint
from patchsae.pipeline.core.config import BackboneName, Location
from patchsae.pipeline.core.stage import Inputs
from patchsae.pipeline.core.tensors import BROKEN, check_dense
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
        self.fingerprint()
        assert self._base is not None, "a wise_ft backbone is built as the experiment resolved it"
        nested = {role.removeprefix("base "): artifact for role, artifact in inputs.items() if role != "base"}
        backbone = self._base.build(nested)
        state, tuned = backbone.state(), self._tuned()
        for name, tensor in tuned.items():
            if name not in state:
                raise UserError(f"{self._where()}: has a tensor `{name}`, which `{self.backbone}` has not.")
            check_dense(tensor, name, self._where())
            if state[name].shape != tensor.shape:
                raise UserError(
                    f"{self._where()}: `{name}` is {tuple(tensor.shape)}, but {tuple(state[name].shape)} in "
                    f"`{self.backbone}`; give a checkpoint of the same model."
                )
        with torch.no_grad():
            for name, tensor in tuned.items():
                if state[name].is_floating_point():
                    # The tensors of `state` share the model's memory, so changing them changes the model.
                    state[name].lerp_(tensor.to(state[name].dtype), self.alpha)
        return backbone

    def outline(self) -> Outline:
        self.fingerprint()
        assert self._base is not None, "a wise_ft backbone is built as the experiment resolved it"
        return self._base.outline()

    def _path(self) -> Path:
        return Path(self.checkpoint).expanduser()

    def _where(self) -> str:
        return f"checkpoint {self.checkpoint}"

    def _tuned(self) -> dict[str, Any]:
        from open_clip.factory import load_state_dict

        try:
            check_checkpoint(self._path())
            return dict(load_state_dict(str(self._path()), weights_only=True))
        except (*BROKEN, OSError, SafetensorError) as error:
            raise UserError(f"{self._where()}: cannot be read as a state dict ({error}).") from error
