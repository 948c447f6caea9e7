"""Preprocessing is pinned: the short side is resized and the middle cut out. A square resize, as in old code on Dassl,
distorts images and costs a point or two of accuracy (docs/datasets.md)."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from patchsae.pipeline.backbones.towers.preprocessing import preprocessing_of
from patchsae.pipeline.core.open_clip_data import model_config

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.mark.parametrize(("width", "height"), [(672, 448), (448, 672), (300, 300)])
def test_clip_s_images_keep_their_proportions(width: int, height: int) -> None:
    model = "ViT-B-16-quickgelu"
    preprocess, settings = preprocessing_of(model_config(model), model, "openai", (224, 224))
    assert (settings["resize_mode"], settings["interpolation"]) == ("shortest", "bicubic")
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
    scale = 224 / min(width, height)
    resized = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
    cut = np.asarray(resized.crop((left, top, left + 224, top + 224))) / 255
    found = preprocess(image).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(found, (cut - MEAN) / STD, atol=1e-4)
    if width != height:
        squeezed = (np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)) / 255 - MEAN) / STD
        assert np.abs(found - squeezed).mean() > 0.1
