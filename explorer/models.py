"""The models of a view: its SAE, its backbone and its classifier, loaded once and kept in the library's cache.

It imports torch, so resources import it when they are asked for something that needs it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from torch import Tensor

from patchsae.explorer import sources
from patchsae.explorer.errors import Absent
from patchsae.explorer.library import Library
from patchsae.explorer.view import View
from patchsae.pipeline.backbones.backbone import Backbone
from patchsae.pipeline.backbones.towers.clip import keep_images, keep_texts
from patchsae.pipeline.classification.classifier import load_classifier
from patchsae.pipeline.classification.zero_shot import ZeroShot
from patchsae.pipeline.results.backbones import recorded_backbone
from patchsae.pipeline.saes.sae import Sae, map_sae
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Artifact

T = TypeVar("T")
# torch uses all cores for one product, and keeps a team of threads for each thread that asked for one. So there is
# one thread that computes, and requests take turns.
_COMPUTING = ThreadPoolExecutor(1, "torch")
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def computed(function: Callable[[], T]) -> T:
    """What `function` returns. It is called in the one thread that computes, and loads nothing itself."""
    try:
        return _COMPUTING.submit(function).result()
    finally:
        _give_back()


def _give_back() -> None:
    """Gives memory back to the system that was freed; glibc keeps about 150 MB after an image of 12 megapixels."""
    trim = getattr(_LIBC, "malloc_trim", None)
    if trim is not None:
        trim(0)


def sae(library: Library, view: View) -> Sae:
    """The SAE of a view, on the CPU. Raises Absent if it is no longer in the store, and Damaged."""
    found = sae_of(view)
    key = ("sae", found.manifest.digest)
    return library.cache.get(key, lambda: map_sae(found), lambda one: _bytes(one.tensors().values()))


def sae_of(view: View) -> Artifact:
    """The artifact of a view's SAE. Raises Absent if it is no longer in the store."""
    if view.sae is None:
        raise Absent(f"SAE {view.sae_key}: is no longer in the store; run its experiment again.")
    return view.sae


def backbone(library: Library, view: View) -> Backbone:
    """The backbone that made a view's activations, plain or adapted, on the CPU, without its text tower.

    Raises Absent if no record or artifact is left that says which it was, and UserError if its weights have changed
    or are no longer there.
    """
    return _tower(library, view, "images", keep_images)


def text_tower(library: Library, view: View) -> Backbone:
    """The same backbone without its image tower. Raises as `backbone` does."""
    return _tower(library, view, "texts", keep_texts)


def _tower(library: Library, view: View, which: str, keep: Callable[[Backbone], None]) -> Backbone:
    place, extracted = sources.recorded(view), view.activations
    if extracted is None:
        raise Absent(
            f"view {view.key}: the activations of its images are no longer in the store; run its experiment again."
        )

    def load() -> Backbone:
        found = recorded_backbone(library.store, place, extracted)
        keep(found)
        return found

    weights = extracted.manifest.inputs["weights"]
    key = (which, place.record.content, place.node.names["backbone"], weights)
    return library.cache.get(key, load, lambda one: _bytes(one.state().values()))


def zero_shot(library: Library, view: View) -> ZeroShot:
    """The classifier of the classes of a view's dataset by its backbone.

    Raises as `backbone` does, and Absent if the store has no class embeddings of this backbone.
    """
    found = view.classifier
    if found is None:
        raise Absent(
            "The store has no zero-shot classifier of these classes by this backbone; an evaluation of kind `masking` "
            "makes one."
        )
    embeddings, scale = library.cache.get(
        ("classifier", found.manifest.digest),
        lambda: load_classifier(found),
        lambda one: _bytes([one[0]]),
    )
    return ZeroShot(backbone(library, view), embeddings, scale, np.arange(len(embeddings)))


def activations(view: View) -> Activations:
    """The cached activations of a view's images. Raises Absent if they are not in the store, and Damaged."""
    if view.activations is None:
        raise Absent(
            f"view {view.key}: the activations of its images are no longer in the store; run its experiment again."
        )
    return Activations(view.activations)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)
