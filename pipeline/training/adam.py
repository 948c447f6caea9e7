"""The optimiser of `pipeline.training.member`: Adam with torch's defaults and no weight decay (spec 2.5).

`torch.optim.Adam` is not used: its constructor imports torch's compiler, which takes 3 to 13 s of a demo of
minutes, and its state would have to be taken apart for every checkpoint. The update itself is torch's fused
kernel, which makes one pass over each parameter where separate operations make seven.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Updates `parameters` in place from their `grad`.

    `moments` holds the running means of g (`mean.NAME`) and of g^2 (`mean_square.NAME`) of each parameter.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)
        self.moments = {
            f"{kind}.{name}": torch.zeros_like(parameter)
            for name, parameter in parameters.items()
            for kind in ("mean", "mean_square")
        }

    @torch.no_grad()
    def step(self, lr: float, step: int) -> None:
        """Makes one update with learning rate `lr`; `step` counts from 1.

        Raises ValueError if a parameter has no gradient.
        """
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                raise ValueError(f"{name} has no gradient")
            torch._fused_adam_(
                [parameter],
                [parameter.grad],
                [self.moments[f"mean.{name}"]],
                [self.moments[f"mean_square.{name}"]],
                [],
                [torch.tensor(float(step), device=parameter.device)],
                lr=lr,
                beta1=_BETA1,
                beta2=_BETA2,
                weight_decay=0.0,
                eps=_EPSILON,
                amsgrad=False,
                maximize=False,
            )
