"""Every architecture of open_clip: what is known of it without weights, and which cannot be cut."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from patchsae.pipeline.backbones.backbone import ExtractConfig
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.backbones.towers.architecture import outline_of
from patchsae.pipeline.backbones.towers.make import outline_model
from patchsae.pipeline.backbones.towers.shapes import is_plain, plain_shapes
from patchsae.pipeline.backbones.towers.vit import ClipVit
from patchsae.pipeline.core.open_clip_data import model_config, model_names
from patchsae.storage.errors import UserError
from patchsae.storage.tokens import TokenLayout

CONVOLUTIONS = {
    "RN": "a ModifiedResNet",
    "convnext": "a ConvNeXt of timm",
    "swin": "a SwinTransformer of timm",
    "MobileCLIP-S": "a FastVit of timm",
    "MobileCLIP2-S": "a FastVit of timm",
}


def unlike(names: list[str]) -> list[str]:
    """The names of open_clip's own models, without those that differ from another of them in their activation alone.

    Other tests of the same process may have added models of their own.
    """
    return [name for name in names if not name.endswith("-quickgelu") and not name.startswith("patchsae-")]


def one_of_each_tower(names: list[str]) -> list[str]:
    """A name for each kind and size of image tower; those of timm are alike but for the size of the image."""
    towers: dict[str, str] = {}
    for name in names:
        vision = model_config(name)["vision_cfg"]
        tower = re.sub(r"_\d+$", "", vision.get("timm_model_name", str(vision)))
        towers.setdefault(tower, name)
    return list(towers.values())


def test_each_architecture_can_be_cut_or_says_why_not() -> None:
    refused = {}
    n_cut = 0
    for name in one_of_each_tower(unlike(model_names())):
        try:
            outline = outline_of(model_config(name), ExtractConfig(), name)
        except UserError as error:
            refused[name] = str(error)
            continue
        n_cut += 1
        rows, columns = outline.layout.grid
        assert rows == columns and outline.layout.n_tokens in (rows * columns, rows * columns + 1)
        assert outline.shapes
    assert n_cut > 40
    expected = {
        name: tower for name in refused for start, tower in CONVOLUTIONS.items() if name.startswith(start)
    }
    assert set(expected) == set(refused) and set(expected.values()) == set(CONVOLUTIONS.values())
    for name, tower in expected.items():
        assert (
            f"its image tower is {tower}, and only vision transformers can be cut at a block" in refused[name]
        )


def test_a_tower_that_takes_other_images_than_open_clip_gives_it_is_refused() -> None:
    with pytest.raises(UserError, match="images of 256 pixels, and the tower takes 384"):
        outline_of(model_config("ViTamin-XL-384"), ExtractConfig(), "ViTamin-XL-384")


@pytest.mark.parametrize(
    ("name", "n_blocks", "width", "layout"),
    [
        ("ViT-B-16-SigLIP2", 12, 768, TokenLayout(0, (14, 14))),
        ("EVA02-L-14-336", 24, 1024, TokenLayout(1, (24, 24))),
        ("PE-Core-bigG-14-448", 50, 1536, TokenLayout(0, (32, 32))),
        ("ViT-H-14-CLIPA", 32, 1280, TokenLayout(1, (16, 16))),
        ("coca_ViT-L-14", 24, 1024, TokenLayout(1, (16, 16))),
    ],
)
def test_outlines_of_other_families(name: str, n_blocks: int, width: int, layout: TokenLayout) -> None:
    outline = outline_of(model_config(name), ExtractConfig(), name)
    assert (outline.n_blocks, outline.width, outline.layout) == (n_blocks, width, layout)


def test_plain_shapes_are_those_of_open_clip() -> None:
    plain = [name for name in unlike(model_names()) if is_plain(model_config(name))]
    assert len(plain) > 30
    for name in plain:
        architecture = model_config(name)
        model = outline_model(architecture)
        assert plain_shapes(architecture) == {n: tuple(t.shape) for n, t in model.state_dict().items()}, name
        outline = outline_of(architecture, ExtractConfig(), name)
        assert outline.layout == ClipVit.layout_of(model.visual, name)
        assert outline.image_size == model.visual.image_size


def test_a_plan_outlines_a_clip_without_importing_open_clip() -> None:
    code = """
import sys
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
outline = OpenClipConfig(model="ViT-L-14", pretrained="datacomp_xl_s13b_b90k").outline()
print(outline.n_blocks, outline.width, outline.layout.n_tokens, outline.n_parameters)
assert not {"open_clip", "timm", "torchvision"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["24", "1024", "257", "427616513"]


def test_weights_trained_with_another_activation_are_refused() -> None:
    with pytest.raises(
        UserError, match="`openai` compute QuickGELU, and ViT-B-16 computes GELU; give `model: ViT-B-1"
    ):
        OpenClipConfig(model="ViT-B-16", pretrained="openai").outline()
    assert OpenClipConfig(model="ViT-B-16-quickgelu", pretrained="openai").outline().n_blocks == 12
