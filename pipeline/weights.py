"""Stage `weights`: which backbone this is, by a digest of every weight and of its preprocessing.

The weights stay where they are; what is made with them carries the digest in its key, and each later load is
checked against it.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

from torch import Tensor, uint8

from pipeline.backbones.base import Backbone, BackboneConfig
from pipeline.stage import Inputs, Runtime, Stage
from storage.artifacts import Artifact, Builder, Summary
from storage.errors import UserError
from storage.keys import canonical_json, digest_json


def state_digest(state: dict[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of the tensors, by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(uint8).numpy().data)
    return digest.hexdigest()


def identity_of(backbone: Backbone) -> str:
    """sha256 over the digest of the weights and the settings that are not seen in them."""
    return digest_json({"state": state_digest(backbone.state()), "settings": backbone.settings})


def _run(config: BackboneConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    backbone = config.build()
    state = backbone.state()
    out.identity = identity_of(backbone)
    rows, columns = backbone.grid
    return {
        "identity": out.identity,
        "n_parameters": sum(tensor.numel() for tensor in state.values()),
        "n_blocks": backbone.n_blocks,
        "width": backbone.width,
        "tokens_per_image": backbone.tokens_per_image,
        "n_prefix_tokens": backbone.n_prefix_tokens,
        "grid": f"{rows}x{columns}",
    }


def load_backbone(config: BackboneConfig, artifact: Artifact, device: str) -> Backbone:
    """The backbone, ready on `device`. Raises UserError if its weights are no longer those of `artifact`."""
    backbone = config.build()
    found = identity_of(backbone)
    if found != artifact.identity:
        raise UserError(
            f"the backbone's weights have the digest {found[:16]}, not {artifact.identity[:16]} as when they were "
            "first read; put the old file back, or run again to use the new weights."
        )
    return backbone.to(device)


@lru_cache(maxsize=1)
def backbone_on(config: BackboneConfig, artifact: Artifact, device: str) -> Backbone:
    """The backbone, kept for the next part of the same process."""
    return load_backbone(config, artifact, device)


def _key_config(config: BackboneConfig) -> dict[str, Any]:
    return {name: value for name, value in config.key_config().items() if name != "extract"}


STAGE = Stage(
    "weights",
    1,
    _run,
    fingerprint=lambda config: config.fingerprint(),
    identified_by_content=True,
    key_config=_key_config,
)
