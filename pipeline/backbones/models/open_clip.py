"""Backbone `open_clip`: any vision transformer of open_clip, with published weights or those of a local file.

Importing open_clip takes seconds, so it is imported only to build the model, or to outline one that is no plain
CLIP. Reading and planning an experiment use `pipeline.core.open_clip_data` instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import model_validator

from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig, Outline
from patchsae.pipeline.backbones.checkpoints.check import check_activation, check_checkpoint
from patchsae.pipeline.backbones.checkpoints.load import load_into
from patchsae.pipeline.backbones.checkpoints.read import file_fingerprint
from patchsae.pipeline.backbones.towers.architecture import outline_of
from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.backbones.towers.make import make_model, tower_of
from patchsae.pipeline.backbones.towers.preprocessing import preprocessing_of, published_framing
from patchsae.pipeline.backbones.towers.tokenizer import (
    check_tokenizer,
    make_tokenizer,
    tokenizer_fingerprint,
)
from patchsae.pipeline.core.config import HashedUnless, OptionalLocation, Unhashed
from patchsae.pipeline.core.hub import from_hub
from patchsae.pipeline.core.open_clip_data import (
    fetch_pretrained,
    model_config,
    model_names,
    pretrained_tag,
    pretrained_tags,
)
from patchsae.pipeline.core.stage import Inputs
from patchsae.pipeline.core.tensors import BROKEN
from patchsae.pipeline.core.text import first_line, nearest
from patchsae.storage.errors import UserError


class OpenClipConfig(BackboneConfig):
    """Any vision transformer of open_clip. docs/models.md lists the models, and what each needs."""

    kind: Literal["open_clip"] = "open_clip"
    model: str
    """An architecture of open_clip, such as `ViT-B-16-quickgelu`, which fits OpenAI's weights."""
    pretrained: Annotated[str | None, Unhashed("the weights are covered by a digest")] = None
    """A tag of published weights, such as `openai`. They are downloaded once."""
    checkpoint: OptionalLocation = None
    """A local file (safetensors, or a torch file of tensors) with the model's state dict."""
    preprocessing: Annotated[str | None, HashedUnless(None)] = None
    """With `checkpoint`: the tag of published weights whose preprocessing (mean, standard deviation and resizing)
    the checkpoint was trained with. Without it, CLIP's; for SigLIP, CLIPA and the like, their own."""
    tokenizer: OptionalLocation = None
    """A folder with the files of the tokenizer, for models whose tokenizer is one of the package `transformers`.
    Without it, they are downloaded once."""

    @model_validator(mode="after")
    def _one_source(self) -> OpenClipConfig:
        models = model_names()
        if self.model not in models:
            raise ValueError(f"model `{self.model}` is not known to open_clip{nearest(self.model, models)}")
        if (self.pretrained is None) == (self.checkpoint is None):
            raise ValueError("give either `pretrained` (a tag) or `checkpoint` (a file)")
        tags = pretrained_tags(self.model)
        for tag in (self.pretrained, self.preprocessing):
            if tag is not None and tag not in tags:
                raise ValueError(f"`{tag}` is no pretrained tag of {self.model}{nearest(tag, tags)}")
        if self.preprocessing is not None and self.checkpoint is None:
            raise ValueError("`preprocessing` is for a `checkpoint`; a tag has its own")
        return self

    def fingerprint(self) -> str:
        source = f"pretrained:{self.pretrained}"
        if (path := self._checkpoint()) is not None:
            source = file_fingerprint(path)
        folder = self._tokenizer()
        return source if folder is None else f"{source}:{tokenizer_fingerprint(folder)}"

    def location(self) -> dict[str, str]:
        folder = self._tokenizer()
        tokenizer = {} if folder is None else {"tokenizer": str(folder.absolute())}
        if (path := self._checkpoint()) is not None:
            return {"checkpoint": str(path.absolute()), **tokenizer}
        return {"pretrained": f"{self.model}:{self.pretrained}", **tokenizer}

    def outline(self) -> Outline:
        fingerprint = self.fingerprint()
        architecture = model_config(self.model)
        check_tokenizer(architecture, self.model, self._tokenizer())
        outline = outline_of(architecture, self.extract, self.model)
        if (path := self._checkpoint()) is not None:
            check_checkpoint(path, fingerprint, self.model, outline, self._where())
        elif pretrained_tag(self.model, self.pretrained or "").get("quick_gelu", False):
            check_activation(self.model, True, f"pretrained: the weights `{self.pretrained}` compute")
        return outline

    def build(self, inputs: Inputs) -> Backbone:
        self.outline()
        architecture, folder = model_config(self.model), self._tokenizer()
        tokenizer, settings = make_tokenizer(architecture, self.model, folder)
        path = self._checkpoint() or self._fetch()
        try:
            with from_hub():
                model = make_model(architecture, folder)
            load_into(model, path, self._where())
        # open_clip asserts the sizes of NumPy weights.
        except (*BROKEN, AssertionError, OSError) as error:
            raise UserError(
                f"{self._where()}: does not load as {self.model} ({first_line(error)})."
            ) from error
        preprocess, how = preprocessing_of(
            architecture, self.model, self.pretrained or self.preprocessing, model.visual.image_size
        )
        settings["preprocess"] = how
        if architecture.get("quick_gelu", False):
            settings["activation"] = "quick_gelu"
        cut = tower_of(model.visual)
        return cut(model, preprocess, tokenizer, self.extract, self.model, settings)

    def framing(self) -> Framing:
        return published_framing(self.model, self.pretrained or self.preprocessing)

    def _fetch(self) -> Path:
        try:
            with from_hub():
                return fetch_pretrained(self.model, self.pretrained or "")
        except (OSError, RuntimeError, ValueError, LookupError) as error:
            raise UserError(
                f"cannot fetch the weights `{self.pretrained}` of {self.model} ({first_line(error)}); fetch them "
                "on a machine with a network and name the file as `checkpoint`."
            ) from error

    def _checkpoint(self) -> Path | None:
        return None if self.checkpoint is None else Path(self.checkpoint).expanduser()

    def _tokenizer(self) -> Path | None:
        return None if self.tokenizer is None else Path(self.tokenizer).expanduser()

    def _where(self) -> str:
        return f"weights {self.pretrained}" if self.checkpoint is None else f"checkpoint {self.checkpoint}"
