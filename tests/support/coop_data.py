"""Writes tiny data sets in the layouts of CoOp's benchmark, and says what is known of them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from patchsae.pipeline.images.coop.facts import FACTS, Facts, Name

N_CLASSES = 3
PER_CLASS = {"train": 4, "val": 2, "test": 3}
WORDNET = ["n01440764", "n01443537", "n01484850"]
IMAGENET_NAMES = ["tench", "goldfish", "great white shark"]
CLASSES: dict[str, list[str]] = {
    "oxford_pets": ["abyssinian", "american_bulldog", "pug"],
    "stanford_cars": ["2012 AM General Hummer SUV", "2012 Acura RL Sedan", "1998 Nissan 240SX Coupe"],
    "caltech101": ["face", "leopard", "water_lilly"],
    "eurosat": ["Annual Crop Land", "Forest", "Highway or Road"],
    "ucf101": ["Apply_Eye_Makeup", "Archery", "Yo_Yo"],
    "fgvc_aircraft": ["707-320", "DR-400", "F/A-18"],
}


def write(root: Path, name: Name) -> Facts:
    """Writes the data set below `root` as CoOp's users have it, with 3 classes; the facts that it agrees with."""
    facts = FACTS[name]
    folder = root / facts.folder
    match facts.layout:
        case "split_file":
            _split_file(folder, facts, CLASSES.get(name, ["one", "two_words", "three"]))
        case "aircraft":
            _aircraft(folder, CLASSES[name])
        case "imagenet":
            for split, place in (("train", "train"), ("test", "val")):
                for wordnet_id in WORDNET:
                    _images(folder / "images" / place / wordnet_id, PER_CLASS[split], ".JPEG")
            _class_names(folder)
        case "imagenet_variant":
            for number, wordnet_id in enumerate(WORDNET):
                place = str(number) if name == "imagenetv2" else wordnet_id
                _images(folder / facts.images / place, PER_CLASS["test"], ".jpeg")
            (folder / facts.images / "README.txt").write_text("Not a class.")
            _class_names(folder)
    return replace(
        facts, n_classes=N_CLASSES, splits={split: N_CLASSES * PER_CLASS[split] for split in facts.splits}
    )


def tiny(monkeypatch: pytest.MonkeyPatch, root: Path, name: Name, **known: Any) -> Facts:
    """As `write`, and makes the package believe that the data set is that small, but for what is `known`."""
    facts = replace(write(root, name), **known)
    monkeypatch.setitem(FACTS, name, facts)  # type: ignore[arg-type]
    return facts


def rewrite(root: Path, name: Name, change: Any) -> None:
    """Changes the content of a split file: `change(content)` returns the new one."""
    path = root / FACTS[name].folder / FACTS[name].split_file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def _split_file(folder: Path, facts: Facts, names: list[str]) -> None:
    content: dict[str, list[list[Any]]] = {}
    for split, n in PER_CLASS.items():
        content[split] = []
        for label, name in enumerate(names):
            below = f"{split}_{label}" if facts.images else f"cars_{'test' if split == 'test' else 'train'}"
            for i in range(n):
                source = f"{below}/{split}{label}{i:03d}.jpg"
                _image(folder / facts.images / source, label, i)
                content[split].append([source, label, name])
    (folder / facts.split_file).write_text(json.dumps(content))


def _aircraft(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "variants.txt").write_text("\n".join(names) + "\n")
    number = 1_000_000
    for split, n in PER_CLASS.items():
        lines = []
        for label, name in enumerate(names):
            for i in range(n):
                number += 1
                _image(folder / "images" / f"{number}.jpg", label, i)
                lines.append(f"{number} {name}")
        (folder / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")


def _class_names(folder: Path) -> None:
    lines = [f"{wordnet_id} {name}" for wordnet_id, name in zip(WORDNET, IMAGENET_NAMES, strict=True)]
    (folder / "classnames.txt").write_text("\n".join(lines) + "\n")


def _images(folder: Path, n: int, suffix: str) -> None:
    for i in range(n):
        _image(folder / f"{folder.name}_{i}{suffix}", len(folder.name), i)


def _image(path: Path, red: int, green: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), (60 * red % 256, 40 * green, hash_of(path.name))).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue())


def hash_of(name: str) -> int:
    return sum(name.encode()) % 256
