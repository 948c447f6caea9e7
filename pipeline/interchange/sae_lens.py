"""SAELens checkpoints: a folder with `cfg.json` and `sae_weights.safetensors` (written as of version 6.54).

The architectures that are one of ours: standard, topk, jumprelu, gated; batchtopk and matryoshka_batchtopk, which
SAELens saves as jumprelu when training ends and under these names before. Versions before 6 spelt some settings
differently.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.config import nearest
from pipeline.interchange import folding
from pipeline.interchange.checked import Layout, check, integer, plain_activation, read_json, read_safetensors
from pipeline.saes.base import Sae, sae_from_tensors
from storage.errors import UserError

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
_VERSION = "6.54.12"
_LAYOUT = {"W_enc": "dS", "b_enc": "S", "W_dec": "Sd", "b_dec": "d"}
_GATED = {"W_enc": "dS", "b_gate": "S", "b_mag": "S", "r_mag": "S", "W_dec": "Sd", "b_dec": "d"}
_SELECTED_BY_BATCH = ("batchtopk", "matryoshka_batchtopk")
_ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", *_SELECTED_BY_BATCH)


def load(folder: Path) -> Sae:
    """The SAE of a folder. Raises UserError if it is none of ours or not whole."""
    config, where = _settings(read_json(folder / CONFIG)), str(folder / CONFIG)
    architecture = config["architecture"]
    if architecture not in _ARCHITECTURES:
        raise UserError(
            f"{where}: the architecture `{architecture}` cannot be read{nearest(str(architecture), _ARCHITECTURES)}"
        )
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name) not in (None, False, "none"):
            raise UserError(
                f"{where}: {name} is {config[name]!r}, which no SAE of ours does to its input; fold it into the weights "
                "with SAELens and save again."
            )
    found = read_safetensors(folder / WEIGHTS)
    where = str(folder / WEIGHTS)
    # Older versions wrote scales of fine-tuning along, all 1 where there had been none.
    scale = found.pop("scaling_factor", None)
    if scale is not None and not torch.equal(scale, torch.ones_like(scale)):
        raise UserError(
            f"{where}: has a scaling_factor that is not 1; fold it into W_dec with SAELens and save again."
        )
    sae = _sae(architecture, config, found, where)
    if not config.get("apply_b_dec_to_input", True):
        sae = Sae(
            sae.W_enc,
            folding.centred_bias(sae.W_enc, sae.b_enc, sae.b_dec),
            sae.W_dec,
            sae.b_dec,
            sae.threshold,
            sae.k,
        )
    return sae


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Settings under their present names."""
    settings = {"architecture": "standard", **config}
    kind = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if kind == "topk" and "k" not in config:
        settings |= {"architecture": "topk", "k": (config.get("activation_fn_kwargs") or {}).get("k")}
    return settings


def _sae(architecture: str, config: dict[str, Any], found: dict[str, Tensor], where: str) -> Sae:
    if architecture == "gated":
        return folding.gated(**check(found, _GATED, where))
    layout: Layout = _LAYOUT
    if architecture == "jumprelu":
        # Older versions trained its logarithm.
        name = "log_threshold" if "log_threshold" in found else "threshold"
        layout = {**_LAYOUT, name: "S"}
    elif architecture in _SELECTED_BY_BATCH:
        layout = {**_LAYOUT, "topk_threshold": ""}
    tensors = check(found, layout, where)
    if config.get("rescale_acts_by_decoder_norm"):
        names = ("W_enc", "b_enc", "W_dec")
        folded = folding.selected_in_decoder_lengths(*(tensors[name] for name in names))
        tensors |= dict(zip(names, folded, strict=True))
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    if "topk_threshold" in tensors:
        tensors["threshold"] = tensors.pop("topk_threshold").expand(len(tensors["b_enc"])).clone()
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].clamp(min=0)
    if architecture == "topk":
        tensors["k"] = torch.tensor(integer(config.get("k"), "k", str(where)))
    return sae_from_tensors(tensors, where)


def save_files(sae: Sae) -> dict[str, bytes]:
    """The files of a folder that `sae_lens.SAE.load_from_disk` reads: name -> content."""
    architecture = {"relu": "standard", "jump_relu": "jumprelu", "top_k": "topk"}[
        plain_activation(sae, "saelens")
    ]
    tensors = {name: getattr(sae, name).contiguous() for name in _LAYOUT}
    config: dict[str, object] = {
        "architecture": architecture,
        "d_in": sae.width,
        "d_sae": sae.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        # The version says which spelling of the settings this is.
        "metadata": {"sae_lens_version": _VERSION},
    }
    if sae.k is not None:
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold.contiguous()
    return {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: save(tensors)}
