"""Tokenizers of open_clip's models: which need the package `transformers`, and making them.

Most models have CLIP's own tokenizer, which comes with open_clip. SigLIP, CLIPA, and models with a text tower of
`transformers`, such as NLLB-CLIP, have another, of which `transformers` fetches the files once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from patchsae.pipeline.core.hub import from_hub
from patchsae.pipeline.core.text import first_line
from patchsae.storage.errors import UserError
from patchsae.storage.keys import digest_json

Tokenizer = Callable[[Sequence[str]], Tensor]


def of_transformers(architecture: Mapping[str, Any], name: str) -> str | None:
    """The tokenizer that the model needs of `transformers`, by its name there; None if it needs none."""
    text = architecture["text_cfg"]
    named: str | None = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    # open_clip takes a SigLIP's tokenizer by the name of the model if its description names none.
    return named or (name if "siglip" in name.lower() else None)


def check_tokenizer(architecture: Mapping[str, Any], name: str, folder: Path | None) -> None:
    """Raises UserError if the package, or a file that the tokenizer of the model `name` needs, is not there."""
    needed = of_transformers(architecture, name)
    if needed is None:
        if folder is not None:
            raise UserError(
                f"tokenizer {folder}: {name} has open_clip's own tokenizer; leave `tokenizer` out."
            )
        return
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            f"backbone {name}: its tokenizer needs the package `transformers`, which is not installed; install it "
            "with `pip install 'patchsae[hf]'` (in a clone: `uv sync --extra hf`)."
        )
    if folder is None:
        return
    has_text_tower = "hf_model_name" in architecture["text_cfg"]
    for file in ("tokenizer_config.json", *(["config.json"] if has_text_tower else [])):
        if not (folder / file).is_file():
            raise UserError(
                f"tokenizer {folder}: has no {file}; give the folder with all files of the tokenizer `{needed}`."
            )


def tokenizer_fingerprint(folder: Path) -> str:
    """A string that changes when a file of the folder may have changed."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return digest_json([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])


def make_tokenizer(
    architecture: Mapping[str, Any], name: str, folder: Path | None
) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of the model `name`, and what of it is part of the backbone's `settings`.

    Nothing of open_clip's own tokenizer is, since it is the same for all models that have it. Raises UserError
    if its files cannot be fetched or read.
    """
    import open_clip

    needed = of_transformers(architecture, name)
    if needed is None:
        return open_clip.get_tokenizer(name), {}
    try:
        with from_hub():
            tokenizer = open_clip.get_tokenizer(name) if folder is None else _of_folder(architecture, folder)
        vocabulary = tokenizer.tokenizer.get_vocab()
        _ = tokenizer(["a photo"])
    except (OSError, ImportError, ValueError, TypeError, LookupError, RuntimeError) as error:
        if folder is not None:
            raise UserError(f"tokenizer {folder}: cannot be read ({first_line(error)}).") from error
        raise UserError(
            f"backbone {name}: cannot fetch the tokenizer `{needed}` ({first_line(error)}); fetch its files on a "
            "machine with a network and name their folder as `tokenizer`."
        ) from error
    return tokenizer, {"tokenizer": digest_json(sorted(vocabulary.items()))}


def _of_folder(architecture: Mapping[str, Any], folder: Path) -> Any:
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer

    text = architecture["text_cfg"]
    return HFTokenizer(
        str(folder),
        context_length=text.get("context_length", DEFAULT_CONTEXT_LENGTH),
        tokenizer_mode=text.get("tokenizer_mode"),
        **text.get("tokenizer_kwargs", {}),
    )
