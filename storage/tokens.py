"""`TokenLayout`: the order of an image's tokens, which backbones define and readers of activations need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from patchsae.storage.artifacts import Artifact
from patchsae.storage.keys import parse_json

ARRAY = "activations.zarr"
METADATA = f"{ARRAY}/zarr.json"
"""The file of an activation array that has its attributes."""

TokenSelection = Literal["all", "patches", "prefix", "with_prompts"]
"""`all` tokens of the image are its prefix and its patches; `with_prompts` are these and the suffix."""


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one image in their order.

    First `n_prefix` tokens such as CLS, then the patches row by row, then `n_suffix` tokens such as learned
    prompts. `grid` is (rows, columns) of patches.
    """

    n_prefix: int
    grid: tuple[int, int]
    n_suffix: int = 0

    @property
    def n_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def n_tokens(self) -> int:
        return self.n_prefix + self.n_patches + self.n_suffix

    def select(self, tokens: TokenSelection) -> range:
        """The positions of the selected tokens, which are consecutive."""
        if tokens == "prefix":
            return range(self.n_prefix)
        if tokens == "patches":
            return range(self.n_prefix, self.n_prefix + self.n_patches)
        if tokens == "all":
            return range(self.n_prefix + self.n_patches)
        return range(self.n_tokens)

    def cell(self, token: int) -> tuple[int, int] | None:
        """(row, column) of a patch; None for a token that is no patch."""
        patches = self.select("patches")
        return divmod(token - patches.start, self.grid[1]) if token in patches else None

    def attributes(self) -> dict[str, Any]:
        """The layout as attributes of an activation array."""
        suffix = {"n_suffix_tokens": self.n_suffix} if self.n_suffix else {}
        return {"n_prefix_tokens": self.n_prefix, "grid": list(self.grid), **suffix}

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> TokenLayout:
        """The layout that the attributes of an activation array describe."""
        rows, columns = attributes["grid"]
        return cls(attributes["n_prefix_tokens"], (rows, columns), attributes.get("n_suffix_tokens", 0))


def layout_of(activations: Artifact) -> TokenLayout:
    """The layout of an artifact of the stage `extract`, read without loading Zarr. Raises UserError if it is damaged."""
    return TokenLayout.of(parse_json(activations.read(METADATA))["attributes"])
