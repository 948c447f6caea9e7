"""One training step of other libraries' SAEs, each through its own classes, and of the loss as autograd sees it.

Shapes: n tokens, d channels, S latents.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchsae.pipeline.saes.sae import Sae

_LR = 1e-4


@dataclass(frozen=True)
class Peer:
    """`step` takes one optimiser step on tokens [n, d] and returns its loss."""

    name: str
    step: Callable[[Tensor], float]


def dense_relu_l1(start: Sae, l1_coefficient: float, lr: float = _LR) -> Peer:
    """The paper's loss (spec 2.3) in dense float32 autograd, with the reference's order of a step (spec 2.5)."""
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    p = {name: nn.Parameter(getattr(start, name).clone()) for name in names}
    optimiser = torch.optim.Adam(p.values(), lr=lr)

    def step(x: Tensor) -> float:
        with torch.no_grad():
            p["W_dec"] /= p["W_dec"].norm(dim=1, keepdim=True)
        optimiser.zero_grad()
        f = torch.relu((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"])
        x_hat = f @ p["W_dec"] + p["b_dec"]
        mse = ((x_hat - x).pow(2) / x.norm(dim=1, keepdim=True)).mean()
        loss = mse + l1_coefficient * f.abs().sum(dim=1).mean()
        loss.backward()
        with torch.no_grad():
            grad, W = p["W_dec"].grad, p["W_dec"]
            assert grad is not None
            grad -= (grad * W).sum(dim=1, keepdim=True) * W
        optimiser.step()
        return loss.item()

    return Peer("dense fp32 autograd", step)


def _sae_lens(name: str, sae: nn.Module, coefficients: dict[str, float]) -> Peer:
    from sae_lens.saes.sae import TrainStepInput

    optimiser = torch.optim.Adam(sae.parameters(), lr=_LR)
    n_latents = sae.W_dec.shape[0]  # type: ignore[union-attr]

    def step(x: Tensor) -> float:
        sae.train()
        found = sae.training_forward_pass(  # type: ignore[operator]
            step_input=TrainStepInput(
                sae_in=x,
                coefficients=coefficients,
                dead_neuron_mask=torch.zeros(n_latents, dtype=torch.bool),
                n_training_steps=1,
                is_logging_step=False,
            )
        )
        optimiser.zero_grad()
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        return found.loss.item()

    return Peer(name, step)


def sae_lens_standard(start: Sae, l1_coefficient: float) -> Peer:
    """SAELens' standard SAE, from the same weights."""
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig

    config = StandardTrainingSAEConfig(
        d_in=start.width, d_sae=start.n_latents, l1_coefficient=l1_coefficient, apply_b_dec_to_input=True
    )
    sae = StandardTrainingSAE(config)
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(sae, name).copy_(getattr(start, name))
    return _sae_lens("SAELens standard", sae, {"l1": l1_coefficient})


def sae_lens_topk(d: int, n_latents: int, k: int) -> Peer:
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    return _sae_lens("SAELens TopK", TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=n_latents, k=k)), {})


def sparsify_topk(d: int, n_latents: int, k: int) -> Peer:
    # Its Triton decoder is for GPUs; without it, torch's embedding bag.
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(d, SparseCoderConfig(num_latents=n_latents, k=k))
    optimiser = torch.optim.Adam(coder.parameters(), lr=_LR)

    def step(x: Tensor) -> float:
        coder.set_decoder_norm_to_unit_norm()
        loss = coder(x).fvu
        optimiser.zero_grad()
        loss.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        return float(loss.item())

    return Peer("sparsify TopK", step)


def overcomplete_topk(d: int, n_latents: int, k: int) -> Peer:
    from overcomplete.sae import TopKSAE

    sae = TopKSAE(d, n_latents, top_k=k, encoder_module=_LinearEncoder(d, n_latents))
    optimiser = torch.optim.Adam(sae.parameters(), lr=_LR)

    def step(x: Tensor) -> float:
        _, _, x_hat = sae(x)
        loss = (x - x_hat).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss.item())

    return Peer("overcomplete TopK", step)


class _LinearEncoder(nn.Module):
    """overcomplete's own linear encoder adds a batch norm that no other has; this leaves it out, in its favour."""

    def __init__(self, d: int, n_latents: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d, n_latents)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.linear(x)
        return h, torch.relu(h)


def dictionary_learning_topk(d: int, n_latents: int, k: int) -> Peer:
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=100_000,
        activation_dim=d,
        dict_size=n_latents,
        k=k,
        layer=0,
        lm_name="none",
        lr=_LR,
        device="cpu",
    )
    taken = iter(range(10**9))

    def step(x: Tensor) -> float:
        return float(trainer.update(next(taken), x))

    return Peer("dictionary_learning TopK", step)


TOPK = (sparsify_topk, overcomplete_topk, sae_lens_topk, dictionary_learning_topk)
