"""`view`: one SAE on the images of one split with one backbone, and what the store has for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from patchsae.explorer.library import Library
from patchsae.explorer.pictures import has_thumbnails
from patchsae.explorer.resources import joined
from patchsae.explorer.resources.search import has_words
from patchsae.explorer.snapshot import Snapshot
from patchsae.explorer.sources import why_no_pictures
from patchsae.explorer.truth import knows_truth
from patchsae.explorer.view import View
from patchsae.storage.artifacts import Artifact
from patchsae.storage.manifest import KEY_DIGITS
from patchsae.storage.tokens import layout_of


def view(library: Library, arguments: Mapping[str, str]) -> dict[str, Any]:
    """Everything about a view that is not about one latent, image or class."""
    found = library.view(arguments["view"])
    heads = library.heads()
    head = next(one for one in heads if one["key"] == found.key)
    why = why_no_pictures(library, found)
    return {
        **head,
        "columns": joined.sentences(library, found),
        "layout": layout(found),
        "tau": found.config.get("tau"),
        "classes": found.n_classes,
        "gallery": found.gallery is not None,
        "masking": _named(found.snapshot, found.made_from("masking")),
        "remapping": _named(found.snapshot, found.made_from("remapping")),
        "siblings": [one for one in heads if one["sae_key"] == found.sae_key and one["key"] != found.key],
        "words": has_words(found),
        "pictures": why is None or has_thumbnails(found),
        "pictures_why": why,
        "truth": knows_truth(library, found),
        "attributes": _attributes(library, found),
    }


def layout(found: View) -> dict[str, Any] | None:
    """LAYOUT of the view's images; None if the activations are no longer in the store."""
    if found.activations is None:
        return None
    tokens = layout_of(found.activations)
    return {
        "prefix": tokens.n_prefix,
        "grid": list(tokens.grid),
        "suffix": tokens.n_suffix,
        "prefix_names": _prefix_names(tokens.n_prefix),
        "suffix_names": [f"prompt {i + 1}" for i in range(tokens.n_suffix)],
    }


def _prefix_names(n: int) -> list[str]:
    """CLS and registers, as vision transformers have them: 4 or 8 tokens are registers without a CLS token."""
    registers = n if n in (4, 8) else n - 1
    return ["CLS"] * (n > registers) + [f"register {i + 1}" for i in range(registers)]


def _attributes(library: Library, found: View) -> list[str]:
    """What the images are labelled with beside their classes."""
    if found.attributes is None:
        return []
    names: list[str] = (
        library.table(found.attributes, "attributes")["attribute"].unique(maintain_order=True).to_list()
    )
    return names


def _named(snapshot: Snapshot, artifacts: list[Artifact]) -> list[dict[str, str]]:
    found = []
    for artifact in artifacts:
        place = next(iter(snapshot.places(artifact.stage, artifact.key)), None)
        name = place.name if place else artifact.key[:KEY_DIGITS]
        found.append({"key": artifact.key[:KEY_DIGITS], "name": name})
    return found
