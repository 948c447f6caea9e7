"""SAELens checkpoints: a folder with `cfg.json` and `sae_weights.safetensors`, written as by version 6.54.

`pipeline.saes.files` lists the format. It reads the architectures standard, topk, jumprelu and gated, and
also batchtopk and matryoshka_batchtopk, which SAELens saves as jumprelu when training ends and under these
names before. Versions before 6 had other names for some settings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from patchsae.pipeline.core.text import nearest
from patchsae.pipeline.saes.formats import folding
from patchsae.pipeline.saes.formats.checked import (
    Layout,
    check,
    integer,
    plain_activation,
    read_json,
    read_safetensors,
)
from patchsae.pipeline.saes.sae import Sae, sae_from_tensors
from patchsae.storage.errors import UserError

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
_VERSION = "6.54.12"
_LAYOUT = {"W_enc": "dS", "b_enc": "S", "W_dec": "Sd", "b_dec": "d"}
_GATED = {"W_enc": "dS", "b_gate": "S", "b_mag": "S", "r_mag": "S", "W_dec": "Sd", "b_dec": "d"}
_SELECTED_BY_BATCH = ("batchtopk", "matryoshka_batchtopk")
_ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", *_SELECTED_BY_BATCH)


def load(folder: Path) -> Sae:
    """Loads the SAE of a folder.

    Raises UserError if its architecture cannot be read or the files are not complete.
    """
    config, where = _settings(read_json(folder / CONFIG)), str(folder / CONFIG)
    architecture = config["architecture"]
    if architecture not in _ARCHITECTURES:
        raise UserError(
            f"{where}: the architecture `{architecture}` cannot be "
            f"read{nearest(str(architecture), _ARCHITECTURES)}"
        )
    for name in ("normalize_activations", "reshape_activations"):
        if config.get(name) not in (None, False, "none"):
            raise UserError(
                f"{where}: {name} is {config[name]!r}, which no SAE of ours does to its input; fold it "
                "into the weights with SAELens and save again."
            )
    found = read_safetensors(folder / WEIGHTS)
    where = str(folder / WEIGHTS)
    # Older versions also wrote the scales of fine-tuning, which are all 1 if there was none.
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
    """Settings with the names that present versions give them."""
    settings = {"architecture": "standard", **config}
    kind = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    if kind == "topk" and "k" not in config:
        arguments = config.get("activation_fn_kwargs")
        k = arguments.get("k") if isinstance(arguments, dict) else None
        settings |= {"architecture": "topk", "k": k}
    return settings


def _sae(architecture: str, config: dict[str, Any], found: dict[str, Tensor], where: str) -> Sae:
    if architecture == "gated":
        return folding.gated(**check(found, _GATED, where))
    layout: Layout = _LAYOUT
    if architecture == "jumprelu":
        # Older versions trained and saved the logarithm of the threshold.
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
        # SAELens tells from the version which names the settings have.
        "metadata": {"sae_lens_version": _VERSION},
    }
    if sae.k is not None:
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold.contiguous()
    return {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: save(tensors)}
