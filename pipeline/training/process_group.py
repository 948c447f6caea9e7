"""How the processes (ranks) that train one SAE together exchange tensors; each takes a slice of every batch.

`Ranks` is one process alone, `ProcessGroup` are those that `pipeline.training.worker` runs in.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """One process alone: every exchange returns what it was given."""

    rank = 0
    size = 1

    def slice_of(self, n: int) -> slice:
        """This rank's share of n tokens; n must be a multiple of `size`."""
        share = n // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over the ranks."""

    def any_(self, mask: Tensor) -> Tensor:
        """Sets a bool mask, in place, to true where it is true on any rank, and returns it."""
        return mask

    def agree(self, wish: bool, device: str) -> bool:
        """Whether any rank wishes so. One process alone needs no tensor for that."""
        return wish

    def gather(self, values: Tensor) -> Tensor:
        """The values [m] of all ranks in the order of the ranks: [size * m]. m must be the same on each."""
        return values


ALONE = Ranks()


class ProcessGroup(Ranks):
    """The ranks of torch's default process group, which `torchrun` has set up."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()

    def any_(self, mask: Tensor) -> Tensor:
        counts = mask.to(torch.uint8)
        dist.all_reduce(counts, dist.ReduceOp.MAX)
        return mask.copy_(counts)

    def agree(self, wish: bool, device: str) -> bool:
        return bool(self.any_(torch.tensor([wish], device=device)).item())

    def gather(self, values: Tensor) -> Tensor:
        found = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(found, values.contiguous())
        return torch.cat(found)
