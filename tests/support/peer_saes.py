"""Small SAEs of the real packages, with random weights, and how each package saves and loads them.

`uv run --group interchange python -m tests.support.peer_saes` writes the files of `tests/data/interchange`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

FILES = Path(__file__).parents[1] / "data" / "interchange"
WIDTH, N_LATENTS, K = 6, 12, 3


@dataclass(frozen=True)
class Peer:
    """An SAE of another package: `save` writes it at a path, `reconstruct` is its own forward pass."""

    reconstruct: Callable[[Tensor], Tensor]
    save: Callable[[Path], object]


def tokens() -> Tensor:
    return torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(7)) + 0.5


def randomise(module: torch.nn.Module, seed: int, threshold: float | None = None) -> None:
    """Fills a module's floating-point parameters, and its buffers called threshold."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if "threshold" in name:
                values = threshold or 0.5
                noise = torch.rand(tensor.shape, generator=generator) if tensor.dim() else torch.zeros(())
                tensor.copy_(values + 0.3 * noise)
            elif tensor.is_floating_point():
                tensor.copy_(0.6 * torch.randn(tensor.shape, generator=generator))


def sae_lens_peers() -> dict[str, Peer]:
    from sae_lens import saes

    size = {"d_in": WIDTH, "d_sae": N_LATENTS, "dtype": "float32", "device": "cpu"}
    built: dict[str, Any] = {
        "standard": saes.StandardSAE(saes.StandardSAEConfig(**size)),
        "standard_uncentred": saes.StandardSAE(saes.StandardSAEConfig(**size, apply_b_dec_to_input=False)),
        "topk": saes.TopKSAE(saes.TopKSAEConfig(**size, k=K)),
        "topk_rescaled": saes.TopKSAE(saes.TopKSAEConfig(**size, k=K, rescale_acts_by_decoder_norm=True)),
        "jumprelu": saes.JumpReLUSAE(saes.JumpReLUSAEConfig(**size)),
        "gated": saes.GatedSAE(saes.GatedSAEConfig(**size)),
    }
    selected = {"k": K, "decoder_init_norm": 0.5, **size}
    training: dict[str, Any] = {
        "batchtopk": saes.BatchTopKTrainingSAE(saes.BatchTopKTrainingSAEConfig(**selected)),
        "matryoshka": saes.MatryoshkaBatchTopKTrainingSAE(
            saes.MatryoshkaBatchTopKTrainingSAEConfig(**selected, matryoshka_widths=[4, N_LATENTS])
        ),
    }
    peers = {}
    for seed, (name, sae) in enumerate({**built, **training}.items()):
        randomise(sae, seed)
        if name in built:
            peers[name] = Peer(sae, sae.save_model)
        else:
            # What it computes once trained is what it is saved as; in training it selects over the batch.
            peers[f"{name}_trained"] = Peer(_as_jumprelu(sae), sae.save_inference_model)
            peers[f"{name}_in_training"] = Peer(_as_jumprelu(sae), sae.save_model)
    return peers


def _as_jumprelu(sae: Any) -> Callable[[Tensor], Tensor]:
    def reconstruct(x: Tensor) -> Tensor:
        length = sae.W_dec.norm(dim=1) if sae.cfg.rescale_acts_by_decoder_norm else torch.ones(N_LATENTS)
        h = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc) * length
        f = h * (h > sae.topk_threshold)
        return (f / length) @ sae.W_dec + sae.b_dec

    return reconstruct


def dictionary_learning_peers() -> dict[str, Peer]:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    built = [
        dictionary.AutoEncoder(WIDTH, N_LATENTS),
        dictionary.AutoEncoderNew(WIDTH, N_LATENTS),
        dictionary.JumpReluAutoEncoder(WIDTH, N_LATENTS),
        dictionary.GatedAutoEncoder(WIDTH, N_LATENTS),
        AutoEncoderTopK(WIDTH, N_LATENTS, K),
        BatchTopKSAE(WIDTH, N_LATENTS, K),
        MatryoshkaBatchTopKSAE(WIDTH, N_LATENTS, K, [4, N_LATENTS - 4]),
    ]

    def saver(sae: Any) -> Callable[[Path], object]:
        def save(folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(sae.state_dict(), folder / "ae.pt")
            trainer = {"dict_class": type(sae).__name__, "lm_name": "none", "layer": 0}
            if hasattr(sae, "k"):
                trainer["k"] = sae.k.item()
            (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))

        return save

    for seed, sae in enumerate(built):
        randomise(sae, seed)
    return {type(sae).__name__: Peer(sae, saver(sae)) for sae in built}


def saev_peers() -> dict[str, Peer]:
    import saev.config
    import saev.nn

    sae = saev.nn.SparseAutoencoder(saev.config.SparseAutoencoder(d_vit=WIDTH, exp_factor=N_LATENTS // WIDTH))
    randomise(sae, 0)
    return {"relu.pt": Peer(lambda x: sae(x)[0], lambda path: saev.nn.dump(str(path), sae))}


PEERS = {"saelens": sae_lens_peers, "dictionary_learning": dictionary_learning_peers, "saev": saev_peers}


def write(root: Path) -> None:
    for tool, peers in PEERS.items():
        for name, peer in peers().items():
            path = root / tool / name
            path.parent.mkdir(parents=True, exist_ok=True)
            peer.save(path)
            with torch.no_grad():
                save_file({"x_hat": peer.reconstruct(tokens())}, root / tool / f"{name}.expected")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FILES)
