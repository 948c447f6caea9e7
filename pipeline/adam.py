"""Adam with its whole state in plain sight (spec 2.5: torch's defaults, no weight decay).

Not `torch.optim.Adam`: its constructor imports torch's compiler, 3 to 13 s of a demo of minutes, and its state
would have to be taken apart for every checkpoint. The update is torch's own fused kernel, one pass over each parameter
instead of seven.
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


def clip_(parameters: Mapping[str, Tensor], length: float) -> float:
    """Scales all gradients down so that together they are no longer than `length`; returns how long they were."""
    gradients = [p.grad for p in parameters.values() if p.grad is not None]
    found = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm().item()
    if found > length:
        for gradient in gradients:
            gradient.mul_(length / found)
    return found
