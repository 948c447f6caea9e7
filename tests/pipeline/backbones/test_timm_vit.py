"""Towers of timm: the cut is exact with and without a class token, and an experiment runs on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from patchsae.pipeline.backbones.backbone import ExtractConfig
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.backbones.towers import architecture as towers
from patchsae.pipeline.backbones.towers.make import make_model, outline_model
from patchsae.pipeline.backbones.towers.timm_vit import TimmVit
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from patchsae.storage.tokens import TokenLayout
from tests.support.checkpoints import save_weights

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


@timm.models.register_model
def patchsae_tiny_map(pretrained: bool = False, **settings: Any) -> VisionTransformer:
    """A tower like SigLIP's: no class token, pooled by attention."""
    shape: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    kept = {name: settings[name] for name in ("num_classes", "global_pool") if name in settings}
    return VisionTransformer(**{**shape, "class_token": False, "global_pool": "map", **kept})


def architecture(
    tower: str, image_size: int, pool: str, proj: str | None = "none", embed: int = 32
) -> dict[str, Any]:
    vision = {"image_size": image_size, "timm_model_name": tower, "timm_pool": pool, "timm_proj": proj}
    return {
        "embed_dim": embed, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": TEXT,
    }  # fmt: skip


@pytest.fixture(scope="module")
def map_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of a model with the tower above, registered with open_clip, and a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("map")
    described = architecture("patchsae_tiny_map", 32, "map")
    (folder / "patchsae-tiny-map.json").write_text(json.dumps(described))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    path = folder / "map.safetensors"
    save_weights(make_model(described), path)
    return "patchsae-tiny-map", path


@pytest.mark.parametrize(
    ("tower", "image_size", "pool", "proj", "embed", "n_prefix"),
    [
        ("patchsae_tiny_map", 32, "map", "none", 32, 0),
        ("test_vit", 48, "token", None, 16, 1),
        ("test_vit2", 32, "avg", None, 16, 1),
        ("test_vit3", 160, "map", "linear", 16, 1),
        ("eva02_tiny_patch14_224", 224, "token", None, 16, 1),
        ("vit_pe_core_tiny_patch16_384", 384, "map", None, 16, 1),
        ("test_vit_relpos", 160, "avg", "linear", 16, 0),
    ],
)
@pytest.mark.parametrize("block", [-1, 0])
def test_tail_of_head_is_the_model(
    tower: str, image_size: int, pool: str, proj: str | None, embed: int, n_prefix: int, block: int
) -> None:
    torch.manual_seed(0)
    model = make_model(architecture(tower, image_size, pool, proj, embed))
    cut = TimmVit(model, torch.nn.Identity(), torch.nn.Identity(), ExtractConfig(hook_block=block), tower, {})
    seen: list[torch.Tensor] = []
    handle = cut.blocks[cut.hook_block].register_forward_hook(lambda *call: seen.append(call[2]))
    images = torch.randn(2, 3, *cut.image_size)
    with torch.inference_mode():
        whole = model.encode_image(images)
        handle.remove()
        activations = cut.head(images)
        torch.testing.assert_close(activations, seen[0], rtol=0, atol=0)
        torch.testing.assert_close(cut.tail(activations), whole, rtol=1e-5, atol=1e-6)
    assert activations.shape == (2, cut.layout.n_tokens, cut.width)
    assert cut.layout.n_prefix == n_prefix


def test_an_experiment_runs_on_a_tower_without_a_class_token(
    map_model: tuple[str, Path], store: Store
) -> None:
    name, checkpoint = map_model
    text = f"""
name: map
datasets: {{digits: {{kind: digits, n_images: 40}}}}
backbones: {{clip: {{kind: open_clip, model: {name}, checkpoint: {str(checkpoint)!r}}}}}
saes:
  sae: {{kind: topk, k: 2, n_latents: 16, batch_size: 32, n_steps: 2, dataset: digits, backbone: clip}}
evaluations:
  statistics: {{kind: statistics, sae: sae}}
  masking: {{kind: masking, statistics: statistics, ks: [1], n_random: 1}}
  reconstruction: {{kind: reconstruction, sae: sae}}
"""
    done = run(work_on(store, parse(text, "map")), Runtime())
    assert done["weights/clip"].manifest.summary["n_prefix_tokens"] == 0
    assert done["weights/clip"].manifest.summary["grid"] == "4x4"
    assert {address.split("/")[0] for address in done} >= {"statistics", "masking", "reconstruction"}


def test_the_outline_is_that_of_the_backbone(map_model: tuple[str, Path]) -> None:
    config = OpenClipConfig(model=map_model[0], checkpoint=str(map_model[1]))
    outline, backbone = config.outline(), config.build({})
    assert outline.layout == backbone.layout == TokenLayout(0, (4, 4))
    assert (outline.n_blocks, outline.width, outline.image_size) == (3, 32, (32, 32))
    assert outline.n_parameters == sum(tensor.numel() for tensor in backbone.state().values())


def test_a_model_is_outlined_once(map_model: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    n_outlined = 0

    def counted(described: dict[str, Any]) -> Any:
        nonlocal n_outlined
        n_outlined += 1
        return outline_model(described)

    monkeypatch.setattr(towers, "outline_model", counted)
    towers._of_open_clip.cache_clear()
    config = OpenClipConfig(model=map_model[0], checkpoint=str(map_model[1]))
    assert config.outline() == config.with_extract(ExtractConfig(hook_block=0)).outline()
    config.build({})
    assert n_outlined == 1


def test_bfloat16_stays_near_float32(map_model: tuple[str, Path]) -> None:
    config = OpenClipConfig(model=map_model[0], checkpoint=str(map_model[1]))
    full = config.build({}).to("cpu")
    half = config.with_extract(ExtractConfig(precision="bfloat16")).build({}).to("cpu")
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        error = (half.head(images) - full.head(images)).norm() / full.head(images).norm()
    assert 0 < error < 0.02


def test_a_checkpoint_of_another_tower_is_refused(map_model: tuple[str, Path], tiny_checkpoint: Path) -> None:
    with pytest.raises(
        UserError, match=r"does not load as patchsae-tiny-map .*it fits patchsae-tiny: give that"
    ):
        OpenClipConfig(model=map_model[0], checkpoint=str(tiny_checkpoint)).outline()
    with pytest.raises(
        UserError, match=r"does not load as patchsae-tiny .*it fits patchsae-tiny-map: give that"
    ):
        OpenClipConfig(model="patchsae-tiny", checkpoint=str(map_model[1])).outline()
