"""`Towers`: the sizes of a CLIP's towers, by which prompts are made, and whether they can take prompts at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from patchsae.pipeline.adapters.adapter import cannot_adapt

_IMAGE, _TEXT = "visual.transformer.resblocks.", "transformer.resblocks."


@dataclass(frozen=True)
class Towers:
    """What is known of both towers from the shapes of their tensors."""

    image_blocks: int
    image_width: int
    text_blocks: int
    text_width: int
    context_length: int
    """The tokens that the text tower reads."""

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], kind: str, image: bool, text: bool) -> Towers:
        """The sizes, from name -> shape of the tensors of a backbone.

        `image`, `text`: whether the method `kind` has prompts in that tower. The sizes of a tower without prompts
        are 0 if it is not open_clip's own. Raises UserError if one with prompts is not.
        """
        n_image, n_text = _n_blocks(shapes, _IMAGE), _n_blocks(shapes, _TEXT)
        if image and not n_image:
            raise cannot_adapt(
                kind, "prompts go into open_clip's own vision transformers, and this image tower is another"
            )
        if text and not n_text:
            raise cannot_adapt(kind, "prompts go into CLIP's own text tower, and this text tower is another")
        positions = shapes["positional_embedding"] if n_text else (0, 0)
        image_width = shapes["visual.positional_embedding"][1] if n_image else 0
        return cls(n_image, image_width, n_text, positions[1], positions[0])


def _n_blocks(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in shapes if name.startswith(prefix)})
