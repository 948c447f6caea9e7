"""Stage `import`: reads an SAE that was trained elsewhere from files in a format of `pipeline.saes.files`.

Later stages (statistics, masking) use it like a trained one. The content of its files identifies it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from patchsae.pipeline.core.config import Location, Unhashed
from patchsae.pipeline.core.stage import Inputs, Runtime, Source, Stage, Upstream
from patchsae.pipeline.saes import files
from patchsae.pipeline.saes.sae import SaeConfig, save_sae
from patchsae.storage.activations import Activations
from patchsae.storage.artifacts import Builder
from patchsae.storage.errors import UserError
from patchsae.storage.manifest import Summary


class ImportedConfig(SaeConfig):
    """An SAE in files of SAELens, dictionary_learning, saev, the reference, or patchsae itself.

    `dataset` and `backbone` say whose activations the SAE takes.
    """

    stage = "import"
    kind: Literal["imported"] = "imported"
    path: Location
    """A folder; for the reference and saev, a single file."""
    format: Annotated[str | None, Unhashed("what is read with it is covered by a digest")] = None
    """Format of the files; recognised from them if not given."""

    def source(self) -> Path:
        return Path(self.path).expanduser()


def _run(config: ImportedConfig, inputs: Inputs, out: Builder, runtime: Runtime) -> Summary:
    sae = files.load(config.source(), config.format)
    width = Activations(inputs["activations"]).width
    if sae.width != width:
        raise UserError(
            f"{config.path}: this SAE takes {sae.width} channels and the backbone's activations have "
            f"{width}; give the backbone and hook_block it was trained on."
        )
    save_sae(out, sae, config.key_config())
    return {"n_latents": sae.n_latents, "width": sae.width, "activation": sae.activation}


def _look(config: ImportedConfig) -> Source:
    path = config.source()
    return Source(files.fingerprint(path, config.format), {"path": str(path.absolute())})


def _predict_bytes(config: ImportedConfig, inputs: Mapping[str, Upstream]) -> int | None:
    try:
        paths = files.paths(config.source(), config.format)
    except UserError:
        return None  # `_look` raises the same error, and the plan shows it.
    return sum(file.stat().st_size for file in paths if file.is_file())


STAGE = Stage(
    name="import",
    version=1,
    section="saes",
    uses_gpu=False,
    description="SAEs that were trained elsewhere.",
    run=_run,
    source=_look,
    predict_bytes=_predict_bytes,
)
