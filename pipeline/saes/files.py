"""The file formats of SAEs: recognising the format at a path, loading from it, and saving in it.

The stage `import` (`pipeline.saes.import_`) and the command line use it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.saes.formats import dictionary_learning, reference, sae_lens, saev
from patchsae.pipeline.saes.formats.checked import check, missing, read_safetensors, read_state
from patchsae.pipeline.saes.sae import WEIGHTS, Sae, sae_files, sae_from_tensors
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_file, digest_json

_LAYOUT = {"W_enc": "dS", "b_enc": "S", "W_dec": "Sd", "b_dec": "d"}


@dataclass(frozen=True)
class Format:
    """How one format lays out an SAE in files.

    `files` are the names of the files in a folder that hold an SAE. `is_at` recognises an SAE that is a
    single file. `load` raises UserError if the files are not complete. `save_files` returns name -> content,
    or raises UserError if the format cannot express the SAE.
    """

    files: tuple[str, ...] = ()
    is_at: Callable[[Path], bool] | None = None
    load: Callable[[Path], Sae] | None = None
    save_files: Callable[[Sae], dict[str, bytes]] | None = None

    def paths(self, path: Path) -> list[Path]:
        """The files that make up the SAE at `path`."""
        if self.files and path.is_dir():
            return [path / name for name in self.files]
        return [path]


def _load_ours(folder: Path) -> Sae:
    path = folder / WEIGHTS
    tensors = check(read_safetensors(path), _LAYOUT, str(path), {"threshold": "S", "k": ""})
    return sae_from_tensors(tensors, str(path))


FORMATS = {
    "patchsae": Format((WEIGHTS,), load=_load_ours, save_files=lambda sae: sae_files(sae, {})),
    "saelens": Format(
        (sae_lens.CONFIG, sae_lens.WEIGHTS), load=sae_lens.load, save_files=sae_lens.save_files
    ),
    "dictionary_learning": Format(
        (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
        load=dictionary_learning.load,
        save_files=dictionary_learning.save_files,
    ),
    "saev": Format((saev.FILE,), is_at=saev.is_checkpoint, load=saev.load, save_files=saev.save_files),
    "saev-0.1": Format(save_files=saev.save_files_0_1),
    "reference": Format(is_at=zipfile.is_zipfile, load=reference.load),
}
READABLE = tuple(name for name, one in FORMATS.items() if one.load is not None)
WRITABLE = tuple(name for name, one in FORMATS.items() if one.save_files is not None)


def recognise(path: Path) -> str:
    """The name of the format of the SAE at `path`. Raises UserError if there is none in a known format."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder; check the path.")
    if not path.is_dir():
        _refuse_no_file(path)
    for name in READABLE:
        one = FORMATS[name]
        if path.is_dir():
            found = bool(one.files) and (path / one.files[-1]).is_file()
        else:
            found = one.is_at is not None and one.is_at(path)
        if found:
            return name
    expected = "; ".join(
        f"{name}: {' and '.join(FORMATS[name].files)}" for name in READABLE if FORMATS[name].files
    )
    raise UserError(
        f"{path}: holds no SAE in a format that can be read (a folder of {expected}; reference: a .pt file)."
    )


def _refuse_no_file(path: Path) -> None:
    """Raises UserError for a named pipe or a device, which can be read without end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: is no regular file; give the file or the folder of an SAE.")


def _known(path: Path, format_name: str | None) -> Format:
    if format_name is None:
        return FORMATS[recognise(path)]
    if format_name not in READABLE:
        raise UserError(f"the format `{format_name}` cannot be read{nearest(format_name, READABLE)}")
    return FORMATS[format_name]


def load(path: Path, format_name: str | None = None) -> Sae:
    """Loads the SAE at `path`; its format is recognised if not given.

    Raises UserError if it cannot be read.
    """
    known = _known(path, format_name)
    for file in known.paths(path):
        _refuse_no_file(file)
    load_one = known.load
    assert load_one is not None
    return load_one(path)


def paths(path: Path, format_name: str | None = None) -> list[Path]:
    """The files that hold the SAE at `path`, whether or not each exists.

    Raises UserError for an unknown format.
    """
    return _known(path, format_name).paths(path)


def fingerprint(path: Path, format_name: str | None = None) -> str:
    """sha256 over the names and contents of the files that hold the SAE.

    Raises UserError if one is missing.
    """
    digests = {}
    for file in paths(path, format_name):
        if not file.is_file():
            raise UserError(f"{file}: no such file; it is part of the SAE at {path}.")
        digests[file.name if path.is_dir() else "file"] = digest_file(file)
    return digest_json(digests)


def shape(path: Path, format_name: str | None = None) -> tuple[int, int] | None:
    """(channels, latents) of the SAE at `path`, without its values; None if its files do not tell.

    Raises UserError, as `load` does, if they cannot be read.
    """
    name = format_name or recognise(path)
    file = _known(path, name).paths(path)[-1]
    where = str(file)
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as tensors:
                shapes = {one: tensors.get_slice(one).get_shape() for one in tensors.keys()}  # noqa: SIM118
        except OSError as error:
            raise missing(file, error) from None
        except SafetensorError as error:
            raise UserError(f"{file}: not a readable safetensors file ({error}); get it again.") from None
    else:
        if name == "saev":
            _, _, weights = file.read_bytes().partition(b"\n")
            state = read_state(io.BytesIO(weights), where, "meta")
        elif name == "reference":
            state = reference.read_tensors(file, "meta")
        else:
            state = read_state(file, where, "meta")
        shapes = {one: list(tensor.shape) for one, tensor in state.items() if isinstance(tensor, Tensor)}
    found = shapes.get("W_enc") or shapes.get("encoder.weight", [])[::-1]
    return (found[0], found[1]) if len(found) == 2 else None


def save_files(sae: Sae, format_name: str) -> dict[str, bytes]:
    """The files of `sae` in a format: name -> content.

    Raises UserError if the format is unknown or cannot express the SAE.
    """
    if format_name not in WRITABLE:
        raise UserError(f"--format {format_name}: no such format{nearest(format_name, WRITABLE)}")
    write_one = FORMATS[format_name].save_files
    assert write_one is not None
    return write_one(sae)
