"""ShapesCLIP, a small CLIP in open_clip's architecture: its files, and `load` for the backbone `shapes_clip`.

    model, preprocess, tokenizer = shapes_clip.load()

Its files are in this folder: `model.safetensors` (weights), `model.json` (architecture and preprocessing,
with open_clip's key names), `vocabulary.txt` (one word per line), and `training.json` (the record of its
training).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchsae.pipeline.shapes.clip.tokenizer import WordTokenizer
from patchsae.storage.errors import UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "model.safetensors"


def build(config: dict[str, Any]) -> torch.nn.Module:
    """The untrained open_clip.model.CLIP that `config["model_cfg"]` describes."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    cfg = config["model_cfg"]
    model: torch.nn.Module = CLIP(
        embed_dim=cfg["embed_dim"],
        vision_cfg=CLIPVisionCfg(**cfg["vision_cfg"]),
        text_cfg=CLIPTextCfg(**cfg["text_cfg"]),
        quick_gelu=cfg["quick_gelu"],
    )
    return model


def preprocess_of(config: dict[str, Any]) -> Callable[[Image.Image], torch.Tensor]:
    """open_clip's evaluation transform: PIL image -> float32 [3, 64, 64], normalised."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform: Callable[[Image.Image], torch.Tensor] = image_transform_v2(
        PreprocessCfg(**config["preprocess_cfg"]), is_train=False
    )
    return transform


def config(folder: Path = FOLDER) -> dict[str, Any]:
    """The settings in `model.json`: `model_cfg`, `preprocess_cfg`, and the file of the `vocabulary`."""
    found: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return found


def files(folder: Path = FOLDER) -> list[Path]:
    """Everything the model is made of."""
    return [folder / "model.safetensors", folder / "model.json", folder / config(folder)["vocabulary"]]


def tokenizer(folder: Path = FOLDER) -> WordTokenizer:
    """The model's tokenizer, which needs no weights."""
    settings = config(folder)
    return WordTokenizer(
        (folder / settings["vocabulary"]).read_text().split(),
        settings["model_cfg"]["text_cfg"]["context_length"],
    )


def load(
    folder: Path = FOLDER,
) -> tuple[torch.nn.Module, Callable[[Image.Image], torch.Tensor], WordTokenizer]:
    """The trained model (float32, evaluation mode), its preprocessing and its tokenizer."""
    from safetensors.torch import load_file

    settings = config(folder)
    weights = folder / "model.safetensors"
    if not weights.exists():
        raise UserError(
            f"{weights} does not exist; "
            f"train it with python -m patchsae.pipeline.shapes.clip.train --out {folder} --checkpoints ..."
        )
    model = build(settings)
    model.load_state_dict(load_file(weights))
    return model.eval(), preprocess_of(settings), tokenizer(folder)
