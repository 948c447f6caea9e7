"""patchsae: sparse autoencoders on CLIP patch activations as a cached, resumable data pipeline.

    import patchsae

    store = patchsae.open("store")
    relu = store.sae("relu")
    relu.latents.filter(~pl.col("dead")).sort("label_entropy").head(10).collect()
    relu.top_images(17)
    relu.map("photo.jpg", 17)

`patchsae.api` has everything that a notebook needs. The packages below it (`patchsae.flows`,
`patchsae.pipeline`, `patchsae.storage`) may change from version to version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchsae.api import EncodedImages, OpenSae, OpenStore, Pictures, UserError, open

__all__ = ["EncodedImages", "OpenSae", "OpenStore", "Pictures", "UserError", "open"]


def __getattr__(name: str) -> Any:
    """Imports a name of the API when it is first used, so that the command line starts without the API."""
    if name not in __all__:
        raise AttributeError(f"module `patchsae` has no attribute `{name}`")
    from patchsae import api

    return getattr(api, name)
