"""open_clip's lists of architectures, published weights, class names and prompts, read without importing it.

Importing open_clip takes seconds, since it imports torchvision and timm, while an experiment's file and its
plan need only names. open_clip has these in modules of their own, which are imported here through an empty
package with open_clip's folder. If open_clip is already imported, it is used itself, since models may have
been added to it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_SHELL = "_open_clip_data"


def _folder() -> Path:
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _module(name: str) -> ModuleType:
    if "open_clip" in sys.modules:
        return importlib.import_module(f"open_clip.{name}")
    if _SHELL not in sys.modules:
        shell = ModuleType(_SHELL)
        shell.__path__ = [str(_folder())]
        sys.modules[_SHELL] = shell
    if name == "pretrained" and f"{_SHELL}.{name}" not in sys.modules:
        sys.modules[f"{_SHELL}.{name}"] = _without_torch(name)
    return importlib.import_module(f"{_SHELL}.{name}")


def _without_torch(name: str) -> ModuleType:
    """One of open_clip's modules, which imports `safetensors.torch`, and so torch, only to see if it is installed."""
    path = _folder() / f"{name}.py"
    module = ModuleType(f"{_SHELL}.{name}")
    module.__package__, module.__file__ = _SHELL, str(path)
    source = path.read_text(encoding="utf-8").replace("import safetensors.torch", "import safetensors")
    exec(compile(source, path, "exec"), vars(module))
    return module


def model_names() -> list[str]:
    """The names of all architectures."""
    if "open_clip" in sys.modules:
        names: list[str] = sys.modules["open_clip"].list_models()
        return names
    return sorted(path.stem for path in (_folder() / "model_configs").glob("*.json"))


def model_config(name: str) -> dict[str, Any]:
    """The settings of the architecture `name`; empty if there is none of that name."""
    if "open_clip" in sys.modules:
        return sys.modules["open_clip"].get_model_config(name) or {}
    path = _folder() / "model_configs" / f"{name}.json"
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def pretrained_tags(model: str) -> list[str]:
    """The tags of published weights of a model."""
    return list(_module("pretrained").list_pretrained_tags_by_model(model))


def pretrained_tag(model: str, tag: str) -> dict[str, Any]:
    """What is known of published weights: where they are, their preprocessing, and `quick_gelu`."""
    return dict(_module("pretrained").get_pretrained_cfg(model, tag))


def default_preprocessing() -> dict[str, Any]:
    """The settings of open_clip's evaluation transform where published weights do not say otherwise.

    They are the defaults of its `PreprocessCfg`, whose module imports torchvision.
    """
    constants = _module("constants")
    return {
        "size": 224,
        "mode": "RGB",
        "mean": constants.OPENAI_DATASET_MEAN,
        "std": constants.OPENAI_DATASET_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }


def fetch_pretrained(model: str, tag: str) -> Path:
    """The file of published weights, which is downloaded once. Raises what the download raises."""
    return Path(_module("pretrained").download_pretrained(pretrained_tag(model, tag)))


def imagenet_class_names() -> list[str]:
    """The 1,000 class names of CLIP's ImageNet evaluation, in the order of the WordNet ids."""
    return list(_module("zero_shot_metadata").IMAGENET_CLASSNAMES)


def imagenet_templates() -> list[str]:
    """The 80 prompts of CLIP's ImageNet evaluation, with `{}` in place of the class name."""
    return [template("{}") for template in _module("zero_shot_metadata").OPENAI_IMAGENET_TEMPLATES]
