"""The reference implementation's `.pt` files: pickles of `{"cfg": a dataclass, "state_dict"}` (spec 2.8).

Only the weights are used. The dataclass would need the reference's code, and a pickle can execute whatever it
names. So torch's unpickler for weights reads the file: it only calls what rebuilds tensors, and every other
name in the file stands for an empty class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from patchsae.pipeline.core.tensors import BROKEN, check_archive
from patchsae.pipeline.saes.formats.checked import check, missing
from patchsae.pipeline.saes.sae import Sae, sae_from_tensors
from patchsae.storage.errors import UserError

_LAYOUT = {"W_enc": "dS", "b_enc": "S", "W_dec": "Sd", "b_dec": "d"}


class _Inert:
    """Stands for any class or function that a pickle names: it accepts all arguments and does nothing."""

    def __new__(cls, *arguments: object, **named: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load(path: Path) -> Sae:
    """Loads the SAE of a file, executing nothing in it. Raises UserError if the file holds anything else."""
    where = str(path)
    return sae_from_tensors(check(read_tensors(path), _LAYOUT, where), where)


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Any]:
    """The tensors of a file by name. The device `meta` gives tensors that have shapes and no values."""
    where = str(path)
    found = _unpickle(path, device)
    state = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(state, dict):
        raise UserError(
            f"{where}: has no state_dict, as the reference's checkpoints do; check which file this is."
        )
    return state


def _unpickle(path: Path, device: str) -> Any:
    try:
        check_archive(path, str(path))
        # torch.load refuses names that do not belong to tensors unless they are declared safe. Here `_Inert`
        # stands for each of them.
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in names]):
            return torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise missing(path, error) from None
    except BROKEN:
        raise UserError(
            f"{path}: not a checkpoint of weights and settings as torch.save writes it; nothing in it was "
            "executed, get the file again."
        ) from None
