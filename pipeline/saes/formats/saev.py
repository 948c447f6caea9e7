"""saev checkpoints: one file that holds a line of JSON and then the weights as `torch.save` wrote them.

`pipeline.saes.files` lists the format. There are two kinds of files. Version 0.1.0, the package on PyPI
(2025), has only the settings in the first line, uses ReLU, and subtracts `b_dec` from the input. The present
code (schema 5, and 2 to 4 before it) names an activation and does not subtract `b_dec`. Its BatchTopK has one
threshold for all latents. Its TopK keeps the value of a selected latent below 0, where ours sets it to 0, so
the two differ for tokens with fewer than k latents above 0.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.saes.formats import folding
from patchsae.pipeline.saes.formats.checked import (
    check,
    integer,
    missing,
    plain_activation,
    read_state,
)
from patchsae.pipeline.saes.sae import Sae, sae_from_tensors
from patchsae.storage.errors import UserError
from patchsae.storage.keys import parse_json

FILE = "sae.pt"
_LAYOUT = {"W_enc": "dS", "b_enc": "S", "W_dec": "Sd", "b_dec": "d"}
_THRESHOLD = "activation.threshold"
_SCHEMA = 5
_SCHEMAS = (2, 3, 4, 5)
_ACTIVATIONS = ("Relu", "TopK", "BatchTopK")


def is_checkpoint(path: Path) -> bool:
    """Whether a file begins with `{`, as its line of JSON does."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"{"
    except OSError:
        return False


def load(path: Path) -> Sae:
    """Loads the SAE of a file, or of `sae.pt` in a folder.

    Raises UserError if it cannot be read or is not complete.
    """
    path = path / FILE if path.is_dir() else path
    where = str(path)
    try:
        header, _, weights = path.read_bytes().partition(b"\n")
        settings = parse_json(header)
    except OSError as error:
        raise missing(path, error) from None
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UserError(
            f"{where}: does not begin with a line of settings, as a saev checkpoint does; get it again."
        )
    found = read_state(io.BytesIO(weights), where)
    if "schema" not in settings:
        return sae_from_tensors(check(found, _LAYOUT, where), where)
    if settings["schema"] not in _SCHEMAS:
        raise UserError(
            f"{where}: has the schema {settings['schema']!r}; {_SCHEMAS[0]} to {_SCHEMAS[-1]} and files "
            "without one can be read, save it again with a present saev."
        )
    activation = _mapping(_mapping(settings, "cfg", where), "activation", where)
    name = activation.get("cls")
    if name not in _ACTIVATIONS:
        raise UserError(f"{where}: the activation `{name}` cannot be read{nearest(str(name), _ACTIVATIONS)}")
    threshold_layout = {_THRESHOLD: ""} if name == "BatchTopK" else {}
    if settings["schema"] == _SCHEMA:
        tensors = check(found, {**_LAYOUT, **threshold_layout}, where)
    else:
        tensors = check(found, _LAYOUT, where, threshold_layout)
    threshold = tensors.pop(_THRESHOLD, None)
    tensors["b_enc"] = folding.centred_bias(tensors["W_enc"], tensors["b_enc"], tensors["b_dec"])
    if threshold is not None:
        tensors["threshold"] = threshold.clamp(min=0).expand(len(tensors["b_enc"])).clone()
    elif name != "Relu":
        # BatchTopK without a threshold, from before schema 5, selects k latents of each token, as TopK does.
        k = _mapping(activation, "params", where).get("top_k")
        tensors["k"] = torch.tensor(integer(k, "top_k", where))
    return sae_from_tensors(tensors, where)


def _mapping(settings: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    found = settings.get(name)
    if not isinstance(found, dict):
        raise UserError(f"{where}: its first line has no `{name}` of settings; save it again with saev.")
    return found


def save_files(sae: Sae) -> dict[str, bytes]:
    """A checkpoint as the present code writes it: name -> content.

    Raises UserError if latents have different thresholds, which saev cannot express.
    """
    kind = plain_activation(sae, "saev")
    state = {"W_dec": sae.W_dec, "b_dec": sae.b_dec, "W_enc": sae.W_enc, "b_enc": folding.uncentred_bias(sae)}
    params = {}
    if kind == "top_k":
        params = {"top_k": sae.k}
    elif kind == "jump_relu":
        assert sae.threshold is not None
        if (sae.threshold != sae.threshold[0]).any():
            raise UserError(
                "--format saev: saev has one threshold for all latents and this SAE one for each; export it "
                "as saelens or dictionary_learning."
            )
        state[_THRESHOLD] = sae.threshold[0]
    name = {"relu": "Relu", "top_k": "TopK", "jump_relu": "BatchTopK"}[kind]
    settings = {"d_model": sae.width, "d_sae": sae.n_latents, "activation": {"cls": name, "params": params}}
    return {FILE: _file({"schema": _SCHEMA, "cfg": settings, "commit": "unknown", "lib": "patchsae"}, state)}


def save_files_0_1(sae: Sae) -> dict[str, bytes]:
    """A checkpoint as version 0.1.0 writes it. Raises UserError if that version cannot express the SAE."""
    if plain_activation(sae, "saev-0.1") != "relu":
        raise UserError(
            f"--format saev-0.1: saev 0.1.0 knows ReLU alone and this SAE is {sae.activation}; "
            "use --format saev."
        )
    factor, rest = divmod(sae.n_latents, sae.width)
    if rest:
        raise UserError(
            f"--format saev-0.1: saev 0.1.0 needs a multiple of the width {sae.width} as number of latents, "
            f"and this SAE has {sae.n_latents}; use --format saev."
        )
    state = {name: getattr(sae, name) for name in _LAYOUT}
    return {FILE: _file({"d_vit": sae.width, "exp_factor": factor}, state)}


def _file(header: Mapping[str, object], state: Mapping[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    buffer.write(json.dumps(header).encode() + b"\n")
    torch.save({name: tensor.contiguous() for name, tensor in state.items()}, buffer)
    return buffer.getvalue()
