"""The products of sparse with dense matrices that `pipeline.saes.sparse.latents` uses, in torch or in Triton.

Triton is used on cards that run `pipeline.saes.sparse.kernels`. Both give the same numbers up to the order of
summation. On a CPU one thread sums each group in order, so that the result does not depend on the number of
threads.

Shapes: n tokens, d channels, S latents, nnz entries, G groups of entries.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """The module `pipeline.saes.sparse.kernels` if `tensor` is on a card that runs its kernels, else None."""
    return _kernels_on(str(tensor.device)) if tensor.is_cuda else None


@cache
def _kernels_on(device: str) -> ModuleType | None:
    if importlib.util.find_spec("triton") is None:
        return None
    from patchsae.pipeline.saes.sparse import kernels

    return kernels if kernels.usable(device) else None


def weighted_sums(index: Tensor, value: Tensor, bounds: Tensor, W: Tensor) -> Tensor:
    """Sum of `value * W[index]` over each group of consecutive entries: [G, d] for W [rows, d].

    Group g is entries bounds[g] to bounds[g + 1]; `bounds` [G + 1]. Groups may be empty.
    """
    if kernels := kernels_for(W):
        found: Tensor = kernels.weighted_sums(index, value, bounds, W)
        return found
    return embedding_bag(index, W, bounds[:-1].to(index.dtype), mode="sum", per_sample_weights=value)


def products(A: Tensor, W: Tensor, latent: Tensor, offsets: Tensor) -> Tensor:
    """`A[token] . W[latent]` at each entry: [nnz] for A [n, d], W [S, d].

    The entries of token i are offsets[i] to offsets[i + 1]; `offsets` [n + 1].
    """
    if kernels := kernels_for(A):
        found: Tensor = kernels.products(A, W, latent, offsets)
        return found
    pattern = torch.sparse_csr_tensor(
        offsets.int(),
        latent,
        # Zeros, not uninitialised memory: `beta=0.0` multiplies it by 0, and 0 times NaN is NaN.
        A.new_zeros(len(latent)),
        (len(A), len(W)),
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(pattern, A, W.T, beta=0.0).values()
