"""What every stage knows of an SAE: the base of its configs, its weights, and how an artifact holds them.

Shapes: n tokens, d channels, S latents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from safetensors.torch import save
from torch import Tensor

from patchsae.pipeline.core.config import BackboneName, Config, DatasetName
from patchsae.pipeline.core.prediction import Upstream
from patchsae.pipeline.core.tensors import map_tensors, read_tensors
from patchsae.storage.artifacts import Artifact, Builder
from patchsae.storage.errors import UserError

WEIGHTS = "sae.safetensors"
CONFIG = "config.json"
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec")


class SaeConfig(Config):
    """Base of SAE configs: whose activations the SAE takes, and which stage makes it.

    A subclass adds `kind: Literal[...] = ...` and `stage`. The base of trained SAEs is
    `pipeline.training.objective.TrainedSaeConfig`.
    """

    dataset: DatasetName
    """The SAE takes the activations of its images."""
    backbone: BackboneName
    """The SAE takes the activations at its hook."""
    stage: ClassVar[str]
    """The name of the stage that makes the SAE from the inputs `activations` and `images`."""


@dataclass(frozen=True)
class Sae:
    """A trained SAE: `h = (x - b_dec) W_enc + b_enc`, `f = relu(h)`, `x_hat = f W_dec + b_dec`.

    With `threshold`, a latent is 0 unless it is above its threshold (JumpReLU, Gated, BatchTopK). With `k`,
    only the k largest latents of each token are kept (TopK).
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
        """The name of the activation function: relu, jump_relu or top_k."""
        if self.k is not None:
            return "top_k"
        return "relu" if self.threshold is None else "jump_relu"

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the saved file by name; `k` is a tensor without dimensions."""
        found = {name: getattr(self, name) for name in _TENSORS}
        if self.threshold is not None:
            found["threshold"] = self.threshold
        if self.k is not None:
            found["k"] = torch.tensor(self.k)
        return found

    def encode(self, x: Tensor) -> Tensor:
        """The dense latents [n, S] of tokens x [n, d]. Callers keep n to one block of work."""
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
        """The same function with decoder rows of norm 1: each latent is multiplied by the norm its row had.

        With `k`, multiplying would change which latents are the largest. Then only the rows are scaled, as at
        the start of every training step, and the function changes a little.
        """
        length = torch.linalg.vector_norm(self.W_dec, dim=1)
        W_dec = self.W_dec / length[:, None]
        if self.k is not None:
            return replace(self, W_dec=W_dec)
        threshold = None if self.threshold is None else self.threshold * length
        return Sae(self.W_enc * length, self.b_enc * length, W_dec, self.b_dec, threshold)

    def on_inputs_divided_by(self, scale: float) -> Sae:
        """From this SAE, which takes inputs multiplied by `scale`, the SAE that takes the inputs themselves.

        With s = `scale` and a prime for the new SAE, `s x_hat'(x) = x_hat(s x)` and `s f'(x) = f(s x)`:
        reconstructions and latents are in the units of the inputs.
        """
        threshold = None if self.threshold is None else self.threshold / scale
        return replace(self, b_enc=self.b_enc / scale, b_dec=self.b_dec / scale, threshold=threshold)


def sae_files(sae: Sae, config: Mapping[str, object]) -> dict[str, bytes]:
    """Name -> content of `sae.safetensors` and `config.json`, the two files that other tools load."""
    described = {**config, "width": sae.width, "n_latents": sae.n_latents, "activation": sae.activation}
    return {
        WEIGHTS: save({name: tensor.contiguous() for name, tensor in sae.tensors().items()}),
        CONFIG: json.dumps(described, indent=1, sort_keys=True).encode(),
    }


def save_sae(out: Builder, sae: Sae, config: Mapping[str, object]) -> None:
    """Writes the files of an SAE into an artifact."""
    for name, data in sae_files(sae, config).items():
        out.write(name, data)


def load_sae(artifact: Artifact, device: str = "cpu") -> Sae:
    """Reads the SAE of a `train` or `import` artifact.

    Raises UserError if a tensor is missing or of the wrong shape.
    """
    return sae_from_tensors(read_tensors(artifact, WEIGHTS), str(artifact.path)).to(device)


def map_sae(artifact: Artifact) -> Sae:
    """As `load_sae` on the CPU, but tensors are mapped: only what is used of them is in memory.

    An explorer that shows maps uses W_enc and a few rows of W_dec. Their file is compared with its digest first.
    """
    return sae_from_tensors(map_tensors(artifact, WEIGHTS), str(artifact.path))


def width_of(artifact: Artifact) -> int:
    """The number of channels that the SAE of a `train` or `import` artifact takes."""
    return int(json.loads(artifact.read(CONFIG))["width"])


def expected_width(sae: Upstream) -> int | None:
    """`width_of` of an SAE that may not be there yet; None if it is not known."""
    known: int | None = sae.fact("width") if sae.artifact is None else width_of(sae.artifact)
    return known


def check_width(of_sae: int | None, of_activations: int | None) -> None:
    """Raises UserError if both are known and differ."""
    if of_sae is not None and of_activations is not None and of_sae != of_activations:
        raise UserError(
            f"backbone: the SAE takes {of_sae} channels and the activations of this backbone have {of_activations}; "
            f"name a backbone, or a block of it in `extract`, with {of_sae}."
        )


def sae_from_tensors(tensors: Mapping[str, Tensor], where: str) -> Sae:
    """The SAE of tensors that have our names. Raises UserError, naming `where`, if they do not form one."""
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
