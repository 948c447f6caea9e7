"""A first experiment for a folder of images, with settings that suit how many there are, for `patchsae init`."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from PIL import Image
from pydantic import ValidationError

from patchsae.pipeline.backbones.backbone import BackboneConfig
from patchsae.pipeline.backbones.checkpoints.check import models_of
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.backbones.models.shapes_clip import ShapesClipConfig
from patchsae.pipeline.core.config import explain
from patchsae.pipeline.core.open_clip_data import pretrained_tags
from patchsae.pipeline.core.text import count
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.locations import normalized
from patchsae.pipeline.images.datasets.image_folder import ImageFolderConfig
from patchsae.pipeline.images.files import SUFFIXES
from patchsae.storage.errors import UserError
from patchsae.storage.files import expanded

DEFAULT_MODEL, DEFAULT_TAG = "ViT-B-16-quickgelu", "openai"
_SPLITS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
_N_SAMPLED = 40
_TEST_EVERY = 5
_LR, _LR_STEPS = 4e-4, 10_000


@dataclass(frozen=True)
class Starter:
    """The files of a first experiment (name -> text; the YAML file is the first), and what was seen."""

    files: dict[str, str]
    seen: list[str]


@dataclass(frozen=True)
class _Images:
    dataset: str
    n: Counter[str]
    n_classes: int
    seen: list[str]


def backbone_of(kind: str, model: str | None, checkpoint: str | None) -> tuple[BackboneConfig, list[str]]:
    """The backbone that was asked for, and its lines in the YAML file. Raises UserError if it cannot be."""
    if kind == "shapesclip":
        if model or checkpoint:
            raise UserError(
                "--backbone shapesclip: comes with its weights; leave --model and --checkpoint out."
            )
        why = "# It knows rendered shapes only: good to try the tools, not to look at photographs."
        return ShapesClipConfig(), [why, "kind: shapes_clip"]
    if checkpoint:
        if not model:
            fitting = models_of(_absolute(Path(checkpoint)))
            told = f"its tensors are those of {' and '.join(fitting)}" if fitting else "such as ViT-B-16"
            raise UserError(f"--checkpoint {checkpoint}: say with --model NAME which model it is; {told}.")
        path = str(_absolute(Path(checkpoint)))
        return _open_clip(model=model, checkpoint=path), [
            "kind: open_clip",
            f"model: {model}",
            f"checkpoint: {_quoted(path)}",
        ]
    model = model or DEFAULT_MODEL
    tags = pretrained_tags(model)
    tag = DEFAULT_TAG if DEFAULT_TAG in tags or not tags else tags[0]
    return _open_clip(model=model, pretrained=tag), [
        "# The first run downloads the weights. Where there is no network, name a file in place of `pretrained`:",
        "#   checkpoint: weights.safetensors",
        "kind: open_clip",
        f"model: {model}",
        f"pretrained: {tag}",
    ]


def _open_clip(**fields: str) -> OpenClipConfig:
    try:
        return OpenClipConfig(**fields)
    except ValidationError as error:
        raise explain(error, "--model") from None


def starter(folder: Path, target: Path, backbone: BackboneConfig, backbone_lines: Sequence[str]) -> Starter:
    """A first experiment for the images in `folder`, to be written to the YAML file `target`.

    Raises UserError if the folder holds no images.
    """
    root = _absolute(folder)
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds the images.")
    files: dict[str, str] = {}
    listing = target.with_suffix(".csv")
    images = _look(root, listing, files)
    outline = backbone.outline()
    width, n_tokens = outline.width, images.n["train"] * outline.layout.n_tokens
    expansion = max([4, *(e for e in (8, 16, 32, 64) if e * width * 20 <= n_tokens)])
    batch = max([256, *(b for b in (512, 1024, 2048, 4096) if b * 16 <= n_tokens)])
    steps = min(10_000, max(500, round(30 * n_tokens / (batch * 100)) * 100))
    lr = float(f"{_LR * (_LR_STEPS / steps) ** 0.5:.1e}")
    split = "test" if images.n["test"] else "train"
    name = re.sub(r"[^a-z0-9_.-]+", "-", target.stem.lower()).strip("-._") or "images"
    lines = [
        "# Written by `patchsae init`. `patchsae kinds KIND` explains every field, and lists those that are not here.",
        *(f"# {line}" for line in images.seen),
        f"name: {name}",
        "",
        "datasets:",
        f"  images: {images.dataset}",
        "",
        "backbones:",
        "  clip:",
        *(f"    {line}" for line in backbone_lines),
        "    extract: {hook_block: -2}    # activations are taken after the last block but one",
        "",
        "saes:",
        "  topk:",
        "    kind: topk",
        "    dataset: images",
        "    backbone: clip",
        "    k: 32                        # latents that are on, per token",
        f"    expansion: {expansion:<18}# latents per channel: {expansion * width:,} in all",
        f"    batch_size: {batch:<17}# tokens per step; there are {n_tokens:,} to train on",
        f"    n_steps: {steps:<20}# sees each token about {steps * batch / max(1, n_tokens):.0f} times",
        f"    lr: {lr:<25}# fewer steps need a higher rate",
        f"    lr_warmup_steps: {steps // 20}",
        "    lr_schedule: trapezoid",
        "",
        "evaluations:",
        "  statistics: {kind: statistics, sae: topk}      # how often each latent fires, and its top images",
        "  gallery: {kind: gallery, statistics: statistics}    # more images of each latent, for the explorer",
        *_zero_shot(backbone, images.n_classes, split),
    ]
    text = "\n".join(lines) + "\n"
    # What is written must be an experiment. The list of images is not there yet, so the images are not looked for.
    parse(text, str(target)).nodes()
    return Starter({target.name: text, **files}, images.seen)


def _zero_shot(backbone: BackboneConfig, n_classes: int, split: str) -> list[str]:
    """The lines of the evaluations that classify images by the names of their classes."""
    if isinstance(backbone, ShapesClipConfig):
        return [
            "  # `reconstruction` and `masking` classify by words, of which ShapesCLIP knows those of shapes only."
        ]
    lines = [f"  reconstruction: {{kind: reconstruction, sae: topk, split: {split}}}"]
    if n_classes > 1:
        lines += [
            "  # Which latents carry a class: zero-shot accuracy with latents switched off.",
            f"  masking: {{kind: masking, statistics: statistics, split: {split}}}",
        ]
    return lines


def _look(root: Path, listing: Path, files: dict[str, str]) -> _Images:
    """What the folder holds, and its entry in `datasets`. Images without folders get a list, put into `files`."""
    shown = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    folders = [path for path in shown if path.is_dir() and not path.is_symlink()]
    names = {path.name.lower(): path.name for path in folders}
    splits = {split: names[word] for split, words in _SPLITS.items() for word in words if word in names}
    if splits.keys() == _SPLITS.keys() and all(
        any(path.is_dir() for path in (root / name).iterdir()) for name in splits.values()
    ):
        inside = ", ".join(f"{split}: {_quoted(name)}" for split, name in splits.items())
        dataset = f"{{kind: image_folder, root: {_quoted(str(root))}, splits: {{{inside}}}}}"
        return _counted(root, dataset, ImageFolderConfig(root=str(root), splits=splits))
    plain = [path.name for path in shown if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not folders and not plain:
        raise UserError(
            f"{root}: holds no images ({', '.join(sorted(SUFFIXES))}); name the folder that does."
        )
    n_inside = sum(path.suffix.lower() in SUFFIXES for folder in folders for path in folder.iterdir())
    if folders and (not plain or n_inside > len(plain)):
        dataset = f"{{kind: image_folder, root: {_quoted(str(root))}}}"
        images = _counted(root, dataset, ImageFolderConfig(root=str(root)))
        if plain:
            what = "image beside the class folders is", "images beside the class folders are"
            images.seen.append(f"{count(len(plain), *what)} left out, such as {plain[0]}.")
        return images
    if n_inside:
        raise UserError(
            f"{root}: holds {len(plain):,} images beside folders with {n_inside:,} images; put each class into a "
            "folder, or name one folder."
        )
    files[listing.name] = _listed(plain, root.name)
    dataset = f"{{kind: image_folder, root: {_quoted(str(root))}, csv: {_quoted(str(listing.absolute()))}}}"
    n_test = len(plain) // _TEST_EVERY
    n = Counter({"train": len(plain) - n_test, "test": n_test})
    seen = [f"{len(plain):,} images in one folder, {n_test:,} of them for tests; {listing.name} lists them."]
    return _Images(dataset, n, 1, [*seen, *_sizes([root / name for name in plain])])


def _counted(root: Path, dataset: str, config: ImageFolderConfig) -> _Images:
    built = config.build()
    records = built.records()
    n = Counter(record.split for record in records)
    per_class = Counter(record.label for record in records)
    most, least = max(per_class.values()), min(per_class.values())
    splits = ", ".join(f"{n_images:,} {split}" for split, n_images in n.items())
    classes = count(len(per_class), "class", "classes")
    each = f"{least:,} to {most:,} images" if least < most else f"{count(most, 'image')} each"
    seen = [f"{count(len(records), 'image')} ({splits}) of {classes} with {each}."]
    return _Images(dataset, n, len(per_class), [*seen, *_sizes([root / record.source for record in records])])


def _sizes(paths: Sequence[Path]) -> list[str]:
    """A sentence about the sizes of some images, of which only the headers are read."""
    sides, n_unreadable = [], 0
    for path in paths[:: max(1, len(paths) // _N_SAMPLED)]:
        try:
            with Image.open(path) as image:
                sides.append(image.size)
        except OSError:
            n_unreadable += 1
    widths, heights = ([side[axis] for side in sides] for axis in (0, 1))
    found = []
    if sides:
        found.append(f"About {statistics.median(widths):.0f} x {statistics.median(heights):.0f} pixels.")
    if n_unreadable:
        found.append(
            f"{n_unreadable} of {len(sides) + n_unreadable} that were looked at cannot be read; a run leaves such "
            "files out and lists them."
        )
    return found


def _listed(names: Sequence[str], class_name: str) -> str:
    """A CSV of images of one class."""
    splits = ["test" if i % _TEST_EVERY == _TEST_EVERY - 1 else "train" for i in range(len(names))]
    rows = {"path": names, "label": 0, "class_name": class_name, "split": splits}
    return pl.DataFrame(rows).write_csv()


def _absolute(path: Path) -> Path:
    return normalized(expanded(path).absolute())


def _quoted(text: str) -> str:
    """A text as YAML, which takes what JSON does."""
    return json.dumps(text, ensure_ascii=False)
