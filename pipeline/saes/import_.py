"""Stage `import`: reads an SAE that was trained elsewhere from files in a format of `pipeline.saes.files`.

Later stages (statistics, masking) use it like a trained one. The content of its files identifies it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from patchsae.pipeline.core.config import Location, Unhashed
from patchsae.pipeline.core.prediction import MANIFEST_BYTES, Prediction, Source, Upstreams
from patchsae.pipeline.core.stage import Inputs, Runtime, Stage
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
        raise _other_width(config, sae.width, width)
    save_sae(out, sae, config.key_config())
    return {"n_latents": sae.n_latents, "width": sae.width, "activation": sae.activation}


def _look(config: ImportedConfig) -> Source:
    path = config.source()
    return Source(files.fingerprint(path, config.format), {"path": str(path.absolute())})


def _predict(config: ImportedConfig, inputs: Upstreams) -> Prediction:
    if inputs["source"].source is None:
        return Prediction()  # `_look` raised an error, and the plan shows it.
    paths = files.paths(config.source(), config.format)
    n_bytes = sum(file.stat().st_size for file in paths if file.is_file())
    shape = files.shape(config.source(), config.format)
    if shape is None:
        return Prediction({}, n_bytes + MANIFEST_BYTES)
    width = inputs["activations"].fact("width")
    if width is not None and shape[0] != width:
        raise _other_width(config, shape[0], width)
    return Prediction({"n_latents": shape[1], "width": shape[0]}, n_bytes + MANIFEST_BYTES, 0, [])


def _other_width(config: ImportedConfig, width: int, of_backbone: int) -> UserError:
    return UserError(
        f"{config.path}: this SAE takes {width} channels and the backbone's activations have "
        f"{of_backbone}; give the backbone and hook_block it was trained on."
    )


STAGE = Stage(
    name="import",
    version=1,
    section="saes",
    uses_gpu=False,
    description="SAEs that were trained elsewhere.",
    run=_run,
    source=_look,
    predict=_predict,
)
