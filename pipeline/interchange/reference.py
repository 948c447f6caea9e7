"""The reference implementation's `.pt`: a pickle of `{"cfg": a dataclass, "state_dict"}` (spec 2.8), weights only.

Its dataclass would need the reference's code, and a pickle runs whatever it names. So the file is read with torch's
unpickler for weights, which calls nothing but what rebuilds tensors, and every other name in it stands for an empty class.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from pipeline.interchange.checked import check, missing
from pipeline.saes.base import Sae, sae_from_tensors
from storage.errors import UserError

_LAYOUT = {"W_enc": "dS", "b_enc": "S", "W_dec": "Sd", "b_dec": "d"}


class _Inert:
    """Stands for any class or function of a pickle: takes everything and does nothing."""

    def __new__(cls, *arguments: object, **named: object) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def load(path: Path) -> Sae:
    """The SAE of a file. Raises UserError if it holds anything else; nothing in the file is executed."""
    where = str(path)
    found = _unpickle(path)
    state = found.get("state_dict") if isinstance(found, dict) else None
    if not isinstance(state, dict):
        raise UserError(
            f"{where}: has no state_dict, as the reference's checkpoints do; check which file this is."
        )
    return sae_from_tensors(check(state, _LAYOUT, where), where)


def _unpickle(path: Path) -> Any:
    try:
        # torch.load asks for each name that is not of a tensor; all of them get the stand-in.
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise missing(path, error) from None
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
    ):
        raise UserError(
            f"{path}: not a checkpoint of weights and settings as torch.save writes it; nothing in it was executed, get "
            "the file again."
        ) from None
