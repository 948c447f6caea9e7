"""An SAE that was trained elsewhere: read from another tool's files (`pipeline.interchange`) by the stage `import`.

What follows (statistics, masking) uses it like one of our own. It is identified by the content of its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pipeline.config import Location, OptionalLocation
from pipeline.interchange import formats
from pipeline.saes.base import SaeConfig, save_sae
from pipeline.stage import Inputs, Runtime, Stage
from storage.activations import Activations
from storage.artifacts import Artifact, Builder, Summary
from storage.errors import UserError


class ImportedConfig(SaeConfig):
    """Files of SAELens, dictionary_learning, saev, the reference, or patchsae itself.

    `dataset` and `backbone` say whose activations the SAE takes.
    """

    kind: Literal["imported"] = "imported"
    path: Location
    """A folder, or the reference's or saev's file."""
    format: OptionalLocation = None
    """Recognised from the files if not given."""

    def stage(self) -> Stage:
        return STAGE

    def source(self) -> Path:
        return Path(self.path).expanduser()


def _run(config: ImportedConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    sae = formats.load(config.source(), config.format)
    width = Activations(inputs["activations"]).width
    if sae.width != width:
        raise UserError(
            f"{config.path}: this SAE takes {sae.width} channels and the backbone's activations have {width}; "
            "give the backbone and hook_block it was trained on."
        )
    save_sae(out, sae, _key_config(config))
    return {"n_latents": sae.n_latents, "width": sae.width, "activation": sae.activation}


def _key_config(config: ImportedConfig) -> dict[str, object]:
    # Everything else about it is in its files, which the fingerprint covers.
    return {"kind": config.kind}


def _predict_bytes(config: ImportedConfig, inputs: Mapping[str, Artifact | None]) -> int | None:
    try:
        files = formats.paths(config.source(), config.format)
    except UserError:
        return None  # The plan says why.
    return sum(file.stat().st_size for file in files if file.is_file())


STAGE = Stage(
    "import",
    1,
    _run,
    fingerprint=lambda config: formats.fingerprint(config.source(), config.format),
    key_config=_key_config,
    predict_bytes=_predict_bytes,
)
