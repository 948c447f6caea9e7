"""`PromptConfig`: the base of the configs of methods that learn prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor

from patchsae.pipeline.adapters.adapter import Adapter, AdapterConfig, Task
from patchsae.pipeline.adapters.prompts.dassl import Expected, Names
from patchsae.pipeline.adapters.prompts.towers import Towers
from patchsae.pipeline.adapters.prompts.vectors import PromptVectors, Size, random_prompts
from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig, Outline, as_dtype
from patchsae.pipeline.classification.classifier import Prompts
from patchsae.pipeline.core.config import OptionalLocation
from patchsae.pipeline.core.text import count
from patchsae.storage.errors import UserError

Shapes = dict[str, tuple[int, ...]]


# Of CLIP's 77 tokens, about four are the class's own; see `LearnedContext`.
_SHARE_OF_TEXT = 0.1


class PromptConfig(AdapterConfig):
    """Base of the methods that learn prompts. A subclass has `image_prompts` or `text_prompts`, or both.

    What is trained is `image.N` and `text.N`, the prompts of block N, unless it says otherwise by `shapes`,
    `initial` and `vectors`.
    """

    checkpoint: OptionalLocation = None
    """A file of the method's own code (Dassl's `model.pth.tar-N`). Then nothing is trained. The number and the
    depth of the prompts must be those of the file."""

    reads_prompts: ClassVar[bool] = False
    """Whether a method that learns class prompts reads those of `prompts` too."""
    names: ClassVar[Names]
    """How the method's own code names what is trained."""

    @model_validator(mode="after")
    def _learns_its_prompts(self) -> Self:
        if self.text_prompts() is not None and not self.reads_prompts and self.prompts != Prompts():
            raise ValueError(
                "`prompts` is not read, since class prompts are learned; what they begin as is `context`"
            )
        return self

    def image_prompts(self) -> Size | None:
        """The prompts of the image tower, if it gets any."""
        return None

    def text_prompts(self) -> Size | None:
        """The prompts of the text tower, if it gets any."""
        return None

    def words(self) -> str | None:
        """The words that the prompts of the text tower begin as; None if they are random, or if there are none."""
        return None

    def shapes(self, towers: Towers) -> Shapes:
        """Name -> shape of what is trained."""
        sizes = {
            "image": (self.image_prompts(), towers.image_width),
            "text": (self.text_prompts(), towers.text_width),
        }
        return {
            f"{name}.{block}": (size.n, width)
            for name, (size, width) in sizes.items()
            if size is not None
            for block in range(size.depth)
        }

    def initial(self, towers: Towers, generator: torch.Generator) -> dict[str, Tensor]:
        """What is trained before the first step, float32. Words take the place of `text.0` afterwards."""
        tensors: dict[str, Tensor] = {}
        if (size := self.image_prompts()) is not None:
            tensors |= random_prompts("image", size.depth, size.n, towers.image_width, generator)
        if (size := self.text_prompts()) is not None:
            tensors |= random_prompts("text", size.depth, size.n, towers.text_width, generator)
        return tensors

    def vectors(self, tensors: Mapping[str, Tensor]) -> PromptVectors:
        """The prompts that what is trained stands for."""
        return PromptVectors.of(tensors)

    def weights_file(self) -> Path | None:
        return None if self.checkpoint is None else Path(self.checkpoint).expanduser()

    def check(self, outline: Outline) -> None:
        towers = self._towers(outline.shapes)
        image, text = self.image_prompts(), self.text_prompts()
        n_blocks = min(
            [towers.image_blocks] * (image is not None) + [towers.text_blocks] * (text is not None)
        )
        for size, found, tower in ((image, towers.image_blocks, "image"), (text, towers.text_blocks, "text")):
            if size is not None and size.depth > found:
                most = n_blocks if image == text else found
                raise UserError(
                    f"adapter of kind {self._kind()}: `{size.depth_field}` is {size.depth}, and the {tower} tower "
                    f"of `{self.backbone}` has {count(found, 'block')}; set it to at most {most}."
                )
        if text is not None:
            self._check_length(text, towers.context_length)
        if (path := self.weights_file()) is not None:
            self.names.check(path, self._expected(towers), outline.shapes, self._where())

    def check_classes(self, base: BackboneConfig, names: Sequence[str], templates: Sequence[str]) -> None:
        if self.text_prompts() is None:
            super().check_classes(base, names, templates)
        else:
            words = self.words()
            base.check_classes(names, ["{}." if words is None else f"{words} {{}}."])

    def texts_per_step(self, n_classes: int, n_templates: int) -> float:
        return 0 if self.text_prompts() is None else _SHARE_OF_TEXT * n_classes

    def adapted(self, outline: Outline) -> Outline:
        size = self.image_prompts()
        if size is None:
            return outline
        return replace(outline, layout=replace(outline.layout, n_suffix=size.n))

    def begin(self, backbone: Backbone, task: Task, generator: torch.Generator) -> Adapter:
        from patchsae.pipeline.adapters.prompts.training import PromptAdapter

        clip, tensors = self.clip_and_initial(backbone, generator)
        return PromptAdapter(clip, task, tensors, self.vectors, self.words())

    def clip_and_initial(
        self, backbone: Backbone, generator: torch.Generator
    ) -> tuple[Any, dict[str, Tensor]]:
        """The backbone as a `CutClip`, with weights of the type `precision`, and what is trained before the first step."""
        from patchsae.pipeline.adapters.prompts.texts import words_embedded
        from patchsae.pipeline.backbones.towers.shapes import shapes_of

        clip: Any = backbone
        tensors = self.initial(self._towers(shapes_of(backbone.state())), generator)
        words, text = self.words(), self.text_prompts()
        if words is not None and text is not None:
            tensors["text.0"] = words_embedded(clip, words, text.n)
        clip.dtype = as_dtype(self.precision)
        return clip.to(clip.device), tensors

    def read(self, backbone: Backbone) -> dict[str, Tensor]:
        from patchsae.pipeline.backbones.towers.shapes import shapes_of

        path, state = self.weights_file(), backbone.state()
        assert path is not None
        expected = self._expected(self._towers(shapes_of(state)))
        return self.names.read(path, expected, state, self._where())

    def apply(self, backbone: Backbone, tensors: Mapping[str, Tensor]) -> Backbone:
        from patchsae.pipeline.adapters.prompts.backbone import PromptedClip

        clip: Any = backbone
        return PromptedClip(clip, self.vectors(tensors), self.words(), tensors, {"kind": self._kind()})

    def _expected(self, towers: Towers) -> Expected:
        return Expected(self.shapes(towers), {"image": self.image_prompts(), "text": self.text_prompts()})

    def _towers(self, shapes: Mapping[str, tuple[int, ...]]) -> Towers:
        image, text = self.image_prompts() is not None, self.text_prompts() is not None
        return Towers.of(shapes, self._kind(), image, text)

    def _check_length(self, text: Size, length: int) -> None:
        """Raises UserError if the words are fewer than the tokens that take their place, or do not fit."""
        words = self.words()
        n_words = len((words or "").split())
        if words is not None and n_words < text.n:
            raise UserError(
                f"adapter of kind {self._kind()}: `context` has {n_words} words, and `{text.n_field}` is {text.n}; "
                f"give as many words or more, or `context: null` for a random start."
            )
        # Start, one token of a name, full stop and end.
        if max(text.n, n_words) + 4 > length:
            raise UserError(
                f"adapter of kind {self._kind()}: {max(text.n, n_words)} tokens before a class name are too many, "
                f"since the text tower of `{self.backbone}` reads {length} in all; lower `{text.n_field}`."
            )

    def _kind(self) -> str:
        return str(type(self).model_fields["kind"].default)

    def _where(self) -> str:
        return f"checkpoint {self.checkpoint}"
