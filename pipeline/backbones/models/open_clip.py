"""Backbone `open_clip`: any ViT of open_clip, with published weights or those of a local checkpoint file.

Importing open_clip takes seconds, so it is imported only to build the model. Reading and planning an
experiment use `pipeline.core.open_clip_data` instead.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

import torch
from pydantic import model_validator
from safetensors import SafetensorError

from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig, Outline
from patchsae.pipeline.backbones.towers.architecture import outline_of
from patchsae.pipeline.core.config import OptionalLocation
from patchsae.pipeline.core.open_clip_data import model_config, model_names, pretrained_tags
from patchsae.pipeline.core.stage import Inputs
from patchsae.pipeline.core.tensors import BROKEN, check_archive, check_dense
from patchsae.pipeline.core.text import nearest
from patchsae.storage.errors import UserError


class OpenClipConfig(BackboneConfig):
    """Any ViT of open_clip. `open_clip.list_pretrained()` lists the models and their tags."""

    kind: Literal["open_clip"] = "open_clip"
    model: str
    """An architecture of open_clip, such as `ViT-B-16-quickgelu`, which fits OpenAI's weights."""
    pretrained: OptionalLocation = None
    """A tag of published weights, such as `openai`. They are downloaded once."""
    checkpoint: OptionalLocation = None
    """A local file (safetensors, or a torch file of tensors) with the model's state dict."""

    @model_validator(mode="after")
    def _one_source(self) -> OpenClipConfig:
        models = model_names()
        if self.model not in models:
            raise ValueError(f"model `{self.model}` is not known to open_clip{nearest(self.model, models)}")
        if (self.pretrained is None) == (self.checkpoint is None):
            raise ValueError("give either `pretrained` (a tag) or `checkpoint` (a file)")
        if self.pretrained is not None:
            tags = pretrained_tags(self.model)
            if self.pretrained not in tags:
                raise ValueError(
                    f"`{self.pretrained}` is no pretrained tag of {self.model}{nearest(self.pretrained, tags)}"
                )
        return self

    def fingerprint(self) -> str:
        if self.checkpoint is None:
            return f"pretrained:{self.pretrained}"
        return file_fingerprint(Path(self.checkpoint).expanduser())

    def location(self) -> dict[str, str]:
        if self.checkpoint is None:
            return {"pretrained": f"{self.model}:{self.pretrained}"}
        return {"checkpoint": str(Path(self.checkpoint).expanduser().absolute())}

    def build(self, inputs: Inputs) -> Backbone:
        import open_clip

        from patchsae.pipeline.backbones.towers.vit import ClipVit

        source = self.pretrained if self.checkpoint is None else str(Path(self.checkpoint).expanduser())
        if self.checkpoint is not None:
            self.fingerprint()
        try:
            if self.checkpoint is not None:
                check_checkpoint(Path(self.checkpoint).expanduser())
            model, _, preprocess = open_clip.create_model_and_transforms(
                self.model, pretrained=source, load_weights=True, weights_only=True
            )
            tokenizer = open_clip.get_tokenizer(self.model)
        except (*BROKEN, OSError, SafetensorError) as error:
            raise UserError(self._explain(error)) from error
        settings = {"preprocess": model.visual.preprocess_cfg}
        return ClipVit(model, preprocess, tokenizer, self.extract, self.model, settings)

    def _explain(self, error: Exception) -> str:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
        if self.checkpoint is not None:
            # The first line of a state-dict error is a heading; the faults are in the lines after it.
            fault = next((line for line in lines if "size mismatch" in line or "key(s)" in line), lines[0])
            return f"checkpoint {self.checkpoint}: does not load as {self.model} ({fault[:300]})."
        return (
            f"cannot fetch the weights `{self.pretrained}` of {self.model} ({lines[0][:200]}); fetch them on a "
            "machine with a network and name the file as `checkpoint`."
        )

    def outline(self) -> Outline:
        self.fingerprint()
        return outline_of(model_config(self.model), self.extract, self.model)


def check_checkpoint(path: Path) -> None:
    """Raises UserError if a torch file holds no state dict, or one that takes more memory than it has bytes.

    Other formats cannot. Raises what torch raises for a file that it cannot read. Only names and shapes are
    read, since the tensors of an archive are mapped into memory.
    """
    if path.suffix in (".safetensors", ".npz", ".npy"):
        return
    where = f"checkpoint {path}"
    check_archive(path, where)
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        raise UserError(f"{where}: holds no state dict (names and tensors); save the model's state_dict().")
    for name, tensor in state.items():
        check_dense(tensor, name, where)


def file_fingerprint(path: Path) -> str:
    """The name, size and modification time of a file as a string. Raises UserError if it is not there."""
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file; give the path of the weights.")
    stat = path.stat()
    return f"file:{path.name}:{stat.st_size}:{stat.st_mtime_ns}"
