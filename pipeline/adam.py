"""Adam with its whole state in plain sight (spec 2.5: torch's defaults, no weight decay).

Not `torch.optim.Adam`: its constructor imports torch's compiler, 3 to 13 s of a demo of minutes, and its state
would have to be taken apart for every checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Updates `parameters` in place by their `grad`. `moments` holds the running means of g and g^2 by name."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)
        self.moments = {
            f"{kind}.{name}": torch.zeros_like(parameter)
            for name, parameter in parameters.items()
            for kind in ("mean", "mean_square")
        }

    @torch.no_grad()
    def step(self, lr: float, step: int) -> None:
        """One update with rate `lr`; `step` counts from 1. Raises ValueError if a parameter has no gradient."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                raise ValueError(f"{name} has no gradient")
            mean, mean_square = self.moments[f"mean.{name}"], self.moments[f"mean_square.{name}"]
            mean.lerp_(parameter.grad, 1 - _BETA1)
            mean_square.mul_(_BETA2).addcmul_(parameter.grad, parameter.grad, value=1 - _BETA2)
            deviation = mean_square.sqrt().div_((1 - _BETA2**step) ** 0.5).add_(_EPSILON)
            parameter.addcdiv_(mean, deviation, value=-lr / (1 - _BETA1**step))
