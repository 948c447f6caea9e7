"""dictionary_learning checkpoints (version 0.1): a folder with `ae.pt` and `config.json`, naming the class.

`pipeline.saes.files` lists the format. Where encoder and decoder are `nn.Linear`, their weights are
transposed relative to ours.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.saes.formats import folding
from patchsae.pipeline.saes.formats.checked import check, integer, plain_activation, read_json, read_state
from patchsae.pipeline.saes.sae import Sae, sae_from_tensors
from patchsae.storage.errors import UserError

CONFIG = "config.json"
WEIGHTS = "ae.pt"
_LINEAR = {"encoder.weight": "Sd", "encoder.bias": "S", "decoder.weight": "dS"}
_PLAIN = {"W_enc": "dS", "b_enc": "S", "W_dec": "Sd", "b_dec": "d"}
_GATED = {
    "encoder.weight": "Sd",
    "gate_bias": "S",
    "mag_bias": "S",
    "r_mag": "S",
    "decoder.weight": "dS",
    "decoder_bias": "d",
}
_LAYOUTS = {
    "AutoEncoder": {**_LINEAR, "bias": "d"},
    "AutoEncoderNew": {**_LINEAR, "decoder.bias": "d"},
    "AutoEncoderTopK": {**_LINEAR, "b_dec": "d"},
    "BatchTopKSAE": {**_LINEAR, "b_dec": "d", "threshold": ""},
    "MatryoshkaBatchTopKSAE": {**_PLAIN, "threshold": "", "group_sizes": "G"},
    "JumpReluAutoEncoder": {**_PLAIN, "threshold": "S"},
    "GatedAutoEncoder": _GATED,
}
_OPTIONAL = {
    # The threshold of a TopK SAE could replace selecting k latents. Its own loader ignores it, and so do we.
    "AutoEncoderTopK": {"k": "", "threshold": ""},
    "BatchTopKSAE": {"k": ""},
    "MatryoshkaBatchTopKSAE": {"k": ""},
}


def load(folder: Path) -> Sae:
    """Loads the SAE of a folder.

    Raises UserError if its class cannot be read or the files are not complete.
    """
    where = str(folder / CONFIG)
    trainer = read_json(folder / CONFIG).get("trainer")
    name = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{where}: has no trainer.dict_class, which says what kind of SAE it is; add it.")
    if name not in _LAYOUTS:
        raise UserError(f"{where}: the class `{name}` cannot be read{nearest(name, _LAYOUTS)}")
    where = str(folder / WEIGHTS)
    found = read_state(folder / WEIGHTS, where)
    tensors = check(found, _LAYOUTS[name], where, _OPTIONAL.get(name))
    if name == "GatedAutoEncoder":
        return folding.gated(
            tensors["encoder.weight"].T.contiguous(),
            tensors["gate_bias"],
            tensors["mag_bias"],
            tensors["r_mag"],
            tensors["decoder.weight"].T.contiguous(),
            tensors["decoder_bias"],
        )
    ours = _renamed(tensors)
    if name in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        ours["b_enc"] = folding.centred_bias(ours["W_enc"], ours["b_enc"], ours["b_dec"])
    if name == "AutoEncoderTopK":
        k = tensors.get("k", trainer.get("k") if isinstance(trainer, dict) else None)
        ours["k"] = torch.tensor(integer(k, "k", where))
    elif "threshold" in tensors:
        # The threshold is -1 until training sets one. Then latents above 0 are on, as with a threshold of 0.
        ours["threshold"] = tensors["threshold"].clamp(min=0).expand(len(ours["b_enc"])).clone()
    return sae_from_tensors(ours, where)


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The four tensors with our names and in our orientation."""
    if "W_enc" in tensors:
        return {name: tensors[name] for name in _PLAIN}
    b_dec = next(tensors[name] for name in ("bias", "decoder.bias", "b_dec") if name in tensors)
    return {
        "W_enc": tensors["encoder.weight"].T.contiguous(),
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["decoder.weight"].T.contiguous(),
        "b_dec": b_dec,
    }


def save_files(sae: Sae) -> dict[str, bytes]:
    """The files of a folder that `dictionary_learning.utils.load_dictionary` reads: name -> content."""
    name, state = _state(sae)
    trainer: dict[str, Any] = {"dict_class": name, "activation_dim": sae.width, "dict_size": sae.n_latents}
    if sae.k is not None:
        trainer["k"] = sae.k
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return {CONFIG: json.dumps({"trainer": trainer}, indent=1).encode(), WEIGHTS: buffer.getvalue()}


def _state(sae: Sae) -> tuple[str, dict[str, Tensor]]:
    """The name of the class that computes what `sae` does, and its state dict."""
    if plain_activation(sae, "dictionary_learning") == "jump_relu":
        assert sae.threshold is not None
        plain = {name: getattr(sae, name).contiguous() for name in _PLAIN}
        return "JumpReluAutoEncoder", {
            **plain,
            "b_enc": folding.uncentred_bias(sae),
            "threshold": sae.threshold,
        }
    linear = {
        "encoder.weight": sae.W_enc.T.contiguous(),
        "encoder.bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T.contiguous(),
    }
    if sae.k is None:
        return "AutoEncoder", {**linear, "bias": sae.b_dec}
    counted = {"k": torch.tensor(sae.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    return "AutoEncoderTopK", {**linear, "b_dec": sae.b_dec, **counted}
