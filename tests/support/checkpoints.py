"""Weights in files, as users have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file


def save_weights(model: Any, path: Path) -> None:
    """Writes the state dict of a model as a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
