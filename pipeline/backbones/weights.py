"""Stage `weights`: identifies a backbone by a digest of all its weights and of its preprocessing.

The weights are not copied. Artifacts that are made with a backbone have the digest in their keys, and every
stage that loads the backbone (`load_backbone`) checks its weights against the digest.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, uint8

from patchsae.pipeline.backbones.backbone import Backbone, BackboneConfig
from patchsae.pipeline.core.machine import repeated, waiting
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Probe, Source, Upstreams
from patchsae.pipeline.core.progress import Reporter
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.errors import UserError
from patchsae.storage.keys import canonical_json, digest_json
from patchsae.storage.manifest import Summary


def state_digest(state: dict[str, Tensor]) -> str:
    """sha256 over the names, dtypes, shapes and bytes of the tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.flatten().view(uint8).numpy().data)
    return digest.hexdigest()


# Settings that earlier versions did not digest. Artifacts of these have a digest without them.
_ADDED = ("activation",)


# Fewer parameters than this are read and digested within two seconds.
_FEW_PARAMETERS = 20_000_000


def identities_of(backbone: Backbone) -> list[str]:
    """The identity of the backbone, and the one that earlier versions gave it.

    An identity is the sha256 over the digest of the weights and the backbone's `settings`.
    """
    state, now = state_digest(backbone.state()), backbone.settings
    earlier = {name: value for name, value in now.items() if name not in _ADDED}
    return [digest_json({"state": state, "settings": settings}) for settings in (now, earlier)]


def bars_of(config: BackboneConfig, reporter: Reporter) -> Reporter:
    """The reporter for work that a small backbone does at once: it shows nothing for one."""
    n_parameters = config.outline().n_parameters
    is_small = n_parameters is not None and n_parameters < _FEW_PARAMETERS
    return Reporter() if is_small else reporter


def _build(config: BackboneConfig, inputs: Inputs, reporter: Reporter) -> tuple[Backbone, list[str]]:
    """The backbone and its `identities_of`, with a bar if that takes long."""
    with bars_of(config, reporter).bar("weights", 2, "steps") as bar:
        backbone = config.build(inputs)
        bar.advance(note="read")
        identities = identities_of(backbone)
        bar.advance(note="digested")
    return backbone, identities


def _run(config: BackboneConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    backbone, (out.identity, _) = _build(config, inputs, runtime.reporter)
    state = backbone.state()
    rows, columns = backbone.layout.grid
    return {
        "identity": out.identity,
        "n_parameters": sum(tensor.numel() for tensor in state.values()),
        "n_blocks": backbone.n_blocks,
        "width": backbone.width,
        "tokens_per_image": backbone.layout.n_tokens,
        "n_prefix_tokens": backbone.layout.n_prefix,
        "grid": f"{rows}x{columns}",
    }


def load_backbone(
    config: BackboneConfig, inputs: Inputs, device: str, reporter: Reporter | None = None
) -> Backbone:
    """The backbone, on `device`. `inputs` hold its `weights` artifact and the artifacts it is made from.

    Raises UserError if its weights no longer match the digest of the `weights` artifact.
    """
    backbone, found = _build(config, inputs, reporter or Reporter())
    expected = inputs["weights"].identity
    if expected not in found:
        raise UserError(
            f"the backbone's weights have the digest {found[0][:16]}, not {expected[:16]} as when they were first "
            "read; put the old file back, or run again to use the new weights."
        )
    return backbone.to(device)


def _predict(config: BackboneConfig, inputs: Upstreams) -> Prediction:
    outline = config.outline()
    facts = {
        "n_blocks": outline.n_blocks,
        "width": outline.width,
        "tokens_per_image": outline.layout.n_tokens,
        "n_prefix_tokens": outline.layout.n_prefix,
        "n_parameters": outline.n_parameters,
    }
    effort = [(loading(), n_parameters(facts)), waiting(4.0, "importing open_clip")]
    return Prediction(facts, MANIFEST_BYTES, 0, effort)


def n_parameters(facts: Mapping[str, Any]) -> float:
    """About the number of parameters of both towers: that of the image tower's blocks, and half of it again."""
    return float(facts["n_parameters"] or 1.5 * 12 * facts["n_blocks"] * facts["width"] ** 2)


def loading() -> Probe:
    """Loading a backbone and computing the digest of its weights. A unit is a parameter."""

    def measure() -> float:
        n = 1 << 20
        # A model is made with random weights before it gets its own.
        made = repeated(lambda: torch.nn.init.normal_(torch.empty(n)), n)
        data = torch.zeros(n).numpy().data
        return 2 * made + repeated(lambda: hashlib.sha256(data), n)

    return Probe("loading weights", measure)


def _changed_source(config: BackboneConfig, weights: Artifact) -> str | None:
    """The files of the weights that are newer than an artifact made of them, by name."""
    since = float(weights.manifest.provenance.get("started", 0.0))
    changed = []
    for place in config.location().values():
        with contextlib.suppress(OSError):
            found = Path(place).stat()
            if max(found.st_mtime, found.st_ctime) > since:
                changed.append(Path(place).name)
    return f"{', '.join(changed)} changed" if changed else None


STAGE = Stage(
    name="weights",
    version=1,
    section="backbones",
    uses_gpu=False,
    description="The weights of every backbone, by digest.",
    run=_run,
    source=lambda config: Source(config.fingerprint(), config.location()),
    identified_by_content=True,
    predict=_predict,
    changed_source=_changed_source,
)
