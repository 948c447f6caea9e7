"""`Ks`: the numbers of latents, k, that an evaluation switches on or off."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator

from patchsae.pipeline.core.config import Config

K = Annotated[int, Field(ge=1)] | Literal["all"]


class Ks(Config):
    """Settings with the field `ks`, which has a default and a description of its own in each of them."""

    ks: tuple[K, ...]

    @field_validator("ks")
    @classmethod
    def _ascending(cls, ks: tuple[int | str, ...]) -> tuple[int | str, ...]:
        numbers = sorted({k for k in ks if isinstance(k, int)})
        return (*numbers, "all") if "all" in ks else tuple(numbers)

    def finite_ks(self, n_latents: int) -> np.ndarray:
        """The k that are fewer than all latents, ascending; each is computed."""
        return np.array([k for k in self.ks if isinstance(k, int) and k < n_latents], np.int64)

    def includes_all(self, n_latents: int) -> bool:
        """Whether all latents are one of the numbers; a k that is as large or larger means all."""
        return len(self.finite_ks(n_latents)) < len(self.ks)
