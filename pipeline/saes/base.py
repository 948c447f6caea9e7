"""What an SAE is: a config that knows its objective, weights of four tensors, and an encoder.

Shapes: n tokens, d channels, S latents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.config import BackboneName, Config, DatasetName
from pipeline.stage import Stage
from storage.artifacts import Artifact, Builder
from storage.errors import UserError

WEIGHTS = "sae.safetensors"
CONFIG = "config.json"
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


class SaeConfig(Config):
    """Base of SAE configs: whose activations the SAE takes, and how it comes about.

    A subclass adds `kind: Literal[...] = ...` and `stage`; those that are trained see `pipeline.saes.objective`.
    """

    dataset: DatasetName
    backbone: BackboneName
    split: str = "train"
    tokens: Literal["all", "patches", "prefix"] = "all"
    """Which tokens of each image it is trained on."""
    seed: int = 0

    def stage(self) -> Stage:
        """The stage that makes it, from the inputs `activations` and `images`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sae:
    """A trained SAE: `h = (x - b_dec) W_enc + b_enc`, `f = relu(h)`, `x_hat = f W_dec + b_dec`.

    With `threshold`, a latent that is not above its own is 0 (JumpReLU, Gated, BatchTopK). With `k`, only the k
    largest latents of each token stay (TopK).
    """

    W_enc: Tensor  # [d, S]
    b_enc: Tensor  # [S]
    W_dec: Tensor  # [S, d]
    b_dec: Tensor  # [d]
    threshold: Tensor | None = None  # [S], 0 or more
    k: int | None = None

    @property
    def n_latents(self) -> int:
        return self.W_enc.shape[1]

    @property
    def width(self) -> int:
        return self.W_enc.shape[0]

    @property
    def activation(self) -> str:
        """The name of what follows the encoder's product: relu, jump_relu or top_k."""
        if self.k is not None:
            return "top_k"
        return "relu" if self.threshold is None else "jump_relu"

    def tensors(self) -> dict[str, Tensor]:
        """What the saved file holds, by name; `k` as a tensor without dimensions."""
        found = {name: getattr(self, name) for name in _TENSORS}
        if self.threshold is not None:
            found["threshold"] = self.threshold
        if self.k is not None:
            found["k"] = torch.tensor(self.k)
        return found

    def encode(self, x: Tensor) -> Tensor:
        """[n, d] -> dense latents [n, S]. Callers keep n to one block of work."""
        f = torch.addmm(self.b_enc - self.b_dec @ self.W_enc, x, self.W_enc).relu_()
        if self.threshold is not None:
            f.masked_fill_(f <= self.threshold, 0)
        if self.k is not None:
            largest = f.topk(self.k, dim=1, sorted=False)
            f.zero_().scatter_(1, largest.indices, largest.values)
        return f

    def to(self, device: str) -> Sae:
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        threshold = None if self.threshold is None else self.threshold.to(device)
        return Sae(**moved, threshold=threshold, k=self.k)

    def with_unit_decoder(self) -> Sae:
        """Decoder rows of length 1, and each latent scaled by what its row had instead: the same function.

        With `k`, scaling would change which latents are the largest: only the rows change, as the next training
        step would begin.
        """
        length = torch.linalg.vector_norm(self.W_dec, dim=1)
        W_dec = self.W_dec / length[:, None]
        if self.k is not None:
            return replace(self, W_dec=W_dec)
        threshold = None if self.threshold is None else self.threshold * length
        return Sae(self.W_enc * length, self.b_enc * length, W_dec, self.b_dec, threshold)

    def on_inputs_divided_by(self, scale: float) -> Sae:
        """The same function of inputs that were not multiplied by `scale`, in the input's own units.

        `s x_hat'(x) = x_hat(s x)`, and the latents stay in units of the input: `s f'(x) = f(s x)`.
        """
        threshold = None if self.threshold is None else self.threshold / scale
        return replace(self, b_enc=self.b_enc / scale, b_dec=self.b_dec / scale, threshold=threshold)


def save_sae(out: Builder, sae: Sae, config: dict[str, object]) -> None:
    """Writes the two files others load: `sae.safetensors` and `config.json`."""
    described = {**config, "width": sae.width, "n_latents": sae.n_latents, "activation": sae.activation}
    out.write(WEIGHTS, save({name: tensor.contiguous() for name, tensor in sae.tensors().items()}))
    out.write(CONFIG, json.dumps(described, indent=1, sort_keys=True).encode())


def load_sae(artifact: Artifact, device: str = "cpu") -> Sae:
    """Reads the SAE of a `train` artifact. Raises UserError if a tensor is missing or of the wrong shape."""
    return read_sae(artifact.path / WEIGHTS).to(device)


def read_sae(path: Path) -> Sae:
    """Reads the tensors of a safetensors file."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; train the SAE first.") from None
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}).") from None
    return sae_from_tensors(tensors, str(path))


def sae_from_tensors(tensors: Mapping[str, Tensor], where: str) -> Sae:
    """An SAE from tensors under our names. Raises UserError, naming `where`, if they make none."""
    missing = [name for name in _TENSORS if name not in tensors]
    if missing:
        raise UserError(f"{where}: has no tensor {missing[0]}; an SAE has W_enc, b_enc, W_dec and b_dec.")
    unexpected = sorted(tensors.keys() - {*_TENSORS, "threshold", "k"})
    if unexpected:
        raise UserError(
            f"{where}: has a tensor `{unexpected[0]}`, which no SAE of ours has; convert the file."
        )
    d, n_latents = tensors["W_enc"].shape
    shapes = {
        "b_enc": (n_latents,),
        "W_dec": (n_latents, d),
        "b_dec": (d,),
        "threshold": (n_latents,),
        "k": (),
    }
    for name, shape in shapes.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise UserError(
                f"{where}: {name} is {tuple(tensors[name].shape)}, but W_enc {(d, n_latents)} needs {shape}."
            )
    k = int(tensors["k"]) if "k" in tensors else None
    if k is not None and not 1 <= k <= n_latents:
        raise UserError(f"{where}: k is {k}; it must be between 1 and the {n_latents} latents.")
    return Sae(**{name: tensors[name] for name in _TENSORS}, threshold=tensors.get("threshold"), k=k)
