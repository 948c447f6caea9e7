"""What an SAE is: a config that knows its objective, weights of four tensors, and an encoder.

Shapes: n tokens, d channels, S latents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.config import BackboneName, Config, DatasetName
from storage.artifacts import Artifact, Builder
from storage.errors import UserError

WEIGHTS = "sae.safetensors"
CONFIG = "config.json"


class SaeConfig(Config):
    """Base of SAE configs: what every objective is trained on, and for how long.

    A subclass adds `kind: Literal[...] = ...`, its hyperparameters and `objective`.
    """

    dataset: DatasetName
    backbone: BackboneName
    split: str = "train"
    tokens: Literal["all", "patches", "prefix"] = "all"
    """Which tokens of each image it is trained on."""
    seed: int = 0


@dataclass(frozen=True)
class Sae:
    """A trained SAE: `f = relu((x - b_dec) W_enc + b_enc)`, `x_hat = f W_dec + b_dec`."""

    W_enc: Tensor  # [d, S]
    b_enc: Tensor  # [S]
    W_dec: Tensor  # [S, d]
    b_dec: Tensor  # [d]

    @property
    def n_latents(self) -> int:
        return self.W_enc.shape[1]

    @property
    def width(self) -> int:
        return self.W_enc.shape[0]

    def encode(self, x: Tensor) -> Tensor:
        """[n, d] -> dense latents [n, S]. Callers keep n to one block of work."""
        return torch.addmm(self.b_enc - self.b_dec @ self.W_enc, x, self.W_enc).relu_()

    def to(self, device: str) -> Sae:
        return Sae(*(getattr(self, name).to(device) for name in ("W_enc", "b_enc", "W_dec", "b_dec")))


def save_sae(out: Builder, sae: Sae, config: dict[str, object]) -> None:
    """Writes the two files others load: `sae.safetensors` and `config.json`."""
    tensors = {name: getattr(sae, name).contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    out.write(WEIGHTS, save(tensors))
    out.write(CONFIG, json.dumps(config, indent=1, sort_keys=True).encode())


def load_sae(artifact: Artifact, device: str = "cpu") -> Sae:
    """Reads the SAE of a `train` artifact. Raises UserError if a tensor is missing or of the wrong shape."""
    return read_sae(artifact.path / WEIGHTS).to(device)


def read_sae(path: Path) -> Sae:
    """Reads the four tensors of a safetensors file."""
    try:
        tensors = load_file(path)
        sae = Sae(**{name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")})
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the SAE first.") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}).") from None
    except KeyError as error:
        raise UserError(f"{path}: has no tensor {error}; an SAE has W_enc, b_enc, W_dec and b_dec.") from None
    d, n_latents = sae.W_enc.shape
    for name, shape in (("b_enc", (n_latents,)), ("W_dec", (n_latents, d)), ("b_dec", (d,))):
        if tuple(tensors[name].shape) != shape:
            raise UserError(
                f"{path}: {name} is {tuple(tensors[name].shape)}, but W_enc {(d, n_latents)} needs {shape}."
            )
    return sae
