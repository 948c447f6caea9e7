"""What every registered backbone must do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from patchsae.pipeline.backbones import models as backbones
from patchsae.pipeline.backbones.backbone import BackboneConfig, ExtractConfig
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.backbones.models.shapes_clip import ShapesClipConfig
from patchsae.pipeline.backbones.models.wise_ft import WiseFtConfig
from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.backbones.towers.vit import ClipVit
from patchsae.pipeline.core import registry
from patchsae.pipeline.experiment.dag import Dag
from patchsae.storage.errors import UserError

KINDS = registry.variants(backbones, BackboneConfig)


@pytest.fixture(params=sorted(KINDS))
def config(request: pytest.FixtureRequest, tiny_checkpoint: Path, tiny_model: str) -> BackboneConfig:
    known: dict[str, BackboneConfig] = {
        "open_clip": OpenClipConfig(model=tiny_model, checkpoint=str(tiny_checkpoint)),
        "shapes_clip": ShapesClipConfig(),
    }
    if request.param == "wise_ft":
        # A tuned checkpoint that moved, from the same model.
        moved = {name: tensor * 1.1 for name, tensor in load_file(tiny_checkpoint).items()}
        path = tiny_checkpoint.with_name("tuned.safetensors")
        save_file(moved, path)
        tuned = WiseFtConfig(backbone="clip", checkpoint=str(path), alpha=0.25)
        return tuned.resolved(Dag({}, {"clip": known["open_clip"]}, {}, {}))
    # A new kind whose fields have defaults needs no line here.
    return known[request.param] if request.param in known else KINDS[request.param]()


def pixels(backbone: ClipVit) -> torch.Tensor:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)) for _ in range(9)]
    return torch.stack([backbone.preprocess(image) for image in images])


@pytest.mark.parametrize("block", [-1, -2, 0])
def test_tail_of_head_is_the_model(config: BackboneConfig, block: int) -> None:
    backbone = config.model_copy(update={"extract": ExtractConfig(hook_block=block)}).build({}).to("cpu")
    images = pixels(backbone)
    with torch.inference_mode():
        activations = backbone.head(images)
        whole = backbone.model.encode_image(images)
        torch.testing.assert_close(backbone.tail(activations), whole, rtol=1e-5, atol=1e-6)
    assert activations.shape == (9, backbone.layout.n_tokens, backbone.width)
    rows, columns = backbone.layout.grid
    assert backbone.layout.n_prefix + rows * columns + backbone.layout.n_suffix == backbone.layout.n_tokens


def test_head_is_what_a_hook_on_the_block_sees(config: BackboneConfig) -> None:
    backbone = config.build({}).to("cpu")
    seen: list[torch.Tensor] = []
    handle = backbone.blocks[backbone.hook_block].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.inference_mode():
        backbone.model.encode_image(pixels(backbone))
        handle.remove()
        torch.testing.assert_close(backbone.head(pixels(backbone)), seen[0], rtol=0, atol=0)


def test_rows_do_not_depend_on_their_batch(config: BackboneConfig) -> None:
    backbone = config.build({}).to("cpu")
    images = pixels(backbone)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.head(images)[:4], backbone.head(images[:4]), rtol=1e-5, atol=1e-6)


def test_the_outline_is_that_of_the_backbone(config: BackboneConfig) -> None:
    backbone, outline = config.build({}), config.outline()
    for name in ("n_blocks", "width", "layout", "image_size"):
        assert getattr(outline, name) == getattr(backbone, name)
    n_parameters = sum(tensor.numel() for tensor in backbone.state().values())
    assert outline.n_parameters in (None, n_parameters)


@pytest.mark.parametrize("block", [99, -99])
def test_the_outline_refuses_what_building_refuses(config: BackboneConfig, block: int) -> None:
    beyond = config.with_extract(ExtractConfig(hook_block=block))
    with pytest.raises(UserError, match=f"hook_block: {block} is out of range") as built:
        beyond.build({})
    with pytest.raises(UserError) as outlined:
        beyond.outline()
    assert str(outlined.value) == str(built.value)


def test_texts_become_features(config: BackboneConfig) -> None:
    backbone = config.build({}).to("cpu")
    with torch.inference_mode():
        features = backbone.encode_text(["a photo of a circle.", "a red object"])
    assert features.shape[0] == 2
    assert features.isfinite().all()


def test_bfloat16_stays_near_float32(config: BackboneConfig) -> None:
    half = config.model_copy(update={"extract": ExtractConfig(precision="bfloat16")}).build({}).to("cpu")
    full = config.build({}).to("cpu")
    with torch.inference_mode():
        images = pixels(full)
        error = (half.head(images) - full.head(images)).norm() / full.head(images).norm()
    assert error < 0.02


def test_the_framing_is_that_of_the_preprocessing(config: BackboneConfig) -> None:
    backbone, framing = config.build({}), config.framing()
    assert framing == Framing.of(backbone.settings["preprocess"])
    assert framing.size == backbone.image_size
    rng = np.random.default_rng(0)
    rows, columns = framing.size
    pixels = rng.integers(0, 256, (rows * 2, columns * 2, 3), np.uint8)
    left, top, right, bottom = framing.box(3 * columns, 2 * rows, framing.size)
    # A picture that differs only outside of the box is the same to the model.
    inside, other = (
        Image.new("RGB", (3 * columns, 2 * rows)),
        Image.new("RGB", (3 * columns, 2 * rows), "red"),
    )
    place = (round(left * 3 * columns), round(top * 2 * rows))
    assert (left, right, top, bottom) == (1 / 6, 5 / 6, 0, 1)
    for image in (inside, other):
        image.paste(Image.fromarray(pixels), place)
    near = (backbone.preprocess(inside) - backbone.preprocess(other)).abs()[:, 2:-2, 2:-2]
    assert near.max() < 1e-6
