"""Which part of each picture the backbone of a recorded experiment sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.backbones.towers.preprocessing import published_framing
from patchsae.pipeline.results.places import Place
from patchsae.pipeline.shapes import clip as shapes_clip

# Importing the kinds of backbones takes seconds, for torch, and a page needs only this of them. A test compares
# these with the configs' own.
_WITHOUT_TORCH: Mapping[str, Callable[[Mapping[str, Any]], Framing]] = {
    "open_clip": lambda raw: published_framing(
        raw["model"], raw.get("pretrained") or raw.get("preprocessing")
    ),
    "shapes_clip": lambda raw: Framing.of(shapes_clip.config()["preprocess_cfg"]),
}


def framing_of(place: Place) -> Framing:
    """The framing of the backbone that a node is about.

    Raises UserError if the record is too old, or does not fit this version.
    """
    sections = ("adapters", "backbones")
    entries = {name: raw for section in sections for name, raw in place.configs.get(section, {}).items()}
    raw = entries.get(place.node.names["backbone"], {})
    while raw.get("backbone") in entries:  # One that is made of another has its preprocessing.
        raw = entries[raw["backbone"]]
    if (of := _WITHOUT_TORCH.get(raw.get("kind", ""))) is not None:
        return of(raw)
    from patchsae.pipeline.results.backbones import backbone_config

    return backbone_config(place).framing()
