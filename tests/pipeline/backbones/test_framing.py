"""`Framing` says where the pixels of a picture land: edges that are painted into it are found in the model's input."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import open_clip
import pytest
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.backbones.towers.preprocessing import preprocessing_of, published_framing
from patchsae.pipeline.core.open_clip_data import (
    default_preprocessing,
    model_config,
    pretrained_tags,
)

PICTURES = [(640, 480), (480, 640), (301, 1000), (500, 333), (48, 37), (31, 64), (224, 224), (225, 224)]
INPUTS = [
    {"size": 224},
    {"size": 63},
    {"size": (96, 224)},
    {"size": (225, 112)},
    {"size": 224, "resize_mode": "longest"},
    {"size": (96, 225), "resize_mode": "longest"},
    {"size": (96, 224), "resize_mode": "squash"},
    {"size": 224, "resize_mode": "squash"},
]


def edge(line: np.ndarray) -> float | None:
    """Where a line of pixels that begins black becomes white, in pixels; None if it does not."""
    after = int(np.argmax(line > 0.5))
    if not 0 < after < len(line) or line[0] > 0.5:
        return None
    low, high = line[after - 1], line[after]
    return float(after - 1 + (0.5 - low) / (high - low) + 0.5)


@pytest.mark.parametrize("settings", INPUTS, ids=str)
@pytest.mark.parametrize(("width", "height"), PICTURES)
def test_edges_land_where_the_box_says(width: int, height: int, settings: dict[str, object]) -> None:
    preprocess = image_transform_v2(
        PreprocessCfg(mean=(0.0,) * 3, std=(1.0,) * 3, **settings),  # type: ignore[arg-type]
        is_train=False,
    )
    framing = Framing.of(settings)
    rows, columns = framing.size
    # As many patches as pixels: the box is that of the whole input.
    left, top, right, bottom = framing.box(width, height, framing.size)
    n_found = 0
    for share in (0.3, 0.45, 0.5, 0.66):
        for axis, (n, start, stop, size) in enumerate(
            ((width, left, right, columns), (height, top, bottom, rows))
        ):
            cut = round(share * n)
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[(slice(None), slice(cut, None)) if axis == 0 else slice(cut, None)] = 255
            # The middle line of the other axis, which no padding reaches.
            found = preprocess(Image.fromarray(pixels))[0].numpy()
            line = found[rows // 2] if axis == 0 else found[:, columns // 2]
            at = edge(line)
            expected = (cut / n - start) / (stop - start) * size
            if 2 < expected < size - 2:
                assert at == pytest.approx(expected, abs=0.2)
                n_found += 1
    assert n_found >= 2


@pytest.mark.parametrize(("width", "height"), PICTURES)
def test_the_shorter_side_is_seen_whole_and_the_middle_of_the_longer_one(width: int, height: int) -> None:
    left, top, right, bottom = Framing((224, 224)).box(width, height, (14, 14))
    if width > height:
        (left, right), (top, bottom) = (top, bottom), (left, right)
    assert (left, right) == (0, 1)
    assert bottom - top == pytest.approx(min(width, height) / max(width, height), rel=0.02)
    assert top + bottom == pytest.approx(1, abs=0.03)


def test_pixels_without_a_patch_are_not_seen() -> None:
    # SigLIP's so400m takes 384 pixels and has 27 patches of 14: the last 6 pixels belong to none.
    assert Framing((384, 384), "squash").box(800, 600, (27, 27)) == (0, 0, 378 / 384, 378 / 384)


def test_the_defaults_are_open_clip_s() -> None:
    assert default_preprocessing() == asdict(PreprocessCfg())


@pytest.mark.parametrize(
    "model", ["ViT-B-16", "ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384", "ViT-H-14-CLIPA"]
)
def test_it_is_known_before_the_model_is_built(model: str) -> None:
    assert model in open_clip.list_models()
    architecture = model_config(model)
    size = architecture["vision_cfg"]["image_size"]
    for tag in (None, *pretrained_tags(model)):
        _, settings = preprocessing_of(architecture, model, tag, (size, size))
        assert published_framing(model, tag) == Framing.of(settings)
    assert published_framing(model, None).resize_mode == ("shortest" if model == "ViT-B-16" else "squash")
