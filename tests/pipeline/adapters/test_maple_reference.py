"""MaPLe against numbers of its own code: `tests/data/reference/maple_depth3.npz`."""

from __future__ import annotations

import ast
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from torch.nn.functional import normalize

from patchsae.pipeline.adapters.adapter import Batch, Task
from patchsae.pipeline.adapters.methods.maple import MapleConfig
from patchsae.pipeline.adapters.prompts.dassl import Names
from patchsae.pipeline.backbones.backbone import ExtractConfig
from patchsae.pipeline.backbones.towers.vit import ClipVit

REFERENCE = Path(__file__).parents[2] / "data" / "reference" / "maple_depth3.npz"
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-4}


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """The parameter of that name, as the file's numbers were made with it."""
    if name == "logit_scale":
        return torch.full(shape, 4.0)
    draw = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    is_norm = ".ln_" in f".{name}" and name.endswith("weight")
    return 1 + 0.05 * draw if is_norm else 0.02 * draw


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    with np.load(REFERENCE) as file:
        found: dict[str, Any] = {name: file[name] for name in file}
    return found | {"config": json.loads(str(found["config"]))}


def clip_of(sizes: dict[str, Any], block: int) -> ClipVit:
    vision = {
        "layers": sizes["vision_layers"],
        "width": sizes["vision_width"],
        "head_width": sizes["vision_width"] // sizes["vision_heads"],
        "patch_size": sizes["patch_size"],
        "image_size": sizes["image_size"],
    }
    text = {
        "context_length": sizes["context_length"],
        "vocab_size": sizes["vocab_size"],
        "width": sizes["text_width"],
        "heads": sizes["text_heads"],
        "layers": sizes["text_layers"],
    }
    model = CLIP(sizes["embed_dim"], vision, text, quick_gelu=sizes["quick_gelu"])
    model.load_state_dict({name: drawn(name, tuple(t.shape)) for name, t in model.state_dict().items()})
    extract = ExtractConfig(hook_block=block)
    return ClipVit(model, torch.nn.Identity(), SimpleTokenizer(), extract, "reference", {})


def trained(names: Names, described: np.ndarray) -> dict[str, Tensor]:
    """The prompts' parameters by our names, from `name (shape)` in the file."""
    tensors = {}
    for line in described.tolist():
        name, _, shape = line.partition(" ")
        ours = names.ours(name)
        assert ours is not None
        tensors[ours] = drawn(name, ast.literal_eval(shape))
    return tensors


def config_of(reference: dict[str, Any]) -> MapleConfig:
    sizes = reference["config"]
    return MapleConfig(
        backbone="clip",
        dataset="images",
        depth=sizes["prompt_depth"],
        n_ctx=sizes["n_ctx"],
        context=sizes["ctx_init"],
    )


@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_every_block_and_the_features_are_those_of_the_reference(
    reference: dict[str, Any], block: int
) -> None:
    config, clip = config_of(reference), clip_of(reference["config"], block)
    adapted = config.apply(clip, trained(config.names, reference["prompt_parameter_names"]))
    names = reference["class_names"].tolist()
    with torch.inference_mode():
        activations = adapted.head(torch.from_numpy(reference["images"]))
        image = normalize(adapted.tail(activations), dim=-1)
        text = adapted.class_embeddings(names, ["ignored {}"], renormalise=True)
        logits = adapted.logit_scale * image @ text.T
    assert adapted.layout.n_suffix == 2 and activations.shape[1] == adapted.layout.n_tokens
    for found, name in ((image, "image_features"), (text, "text_features"), (logits, "logits")):
        torch.testing.assert_close(found, torch.from_numpy(reference[name]), **CLOSE)
    expected = torch.from_numpy(reference["block_outputs"][block])
    torch.testing.assert_close(activations, expected, **CLOSE)


def test_training_starts_from_the_words_and_has_as_many_parameters(reference: dict[str, Any]) -> None:
    config, clip = config_of(reference), clip_of(reference["config"], -2)
    names = reference["class_names"].tolist()
    task = Task(names, ["a photo of a {}."], torch.zeros(len(names), clip.model.visual.output_dim))
    adapter = config.begin(clip, task, torch.Generator().manual_seed(0))
    expected = torch.from_numpy(reference["ctx_from_words"])
    torch.testing.assert_close(adapter.parameters["text.0"].detach(), expected, rtol=0, atol=0)
    n_trained = sum(tensor.numel() for tensor in adapter.parameters.values())
    assert n_trained == reference["config"]["n_trainable"]


def test_the_loss_of_training_is_that_of_the_reference_logits(reference: dict[str, Any]) -> None:
    config, clip = config_of(reference), clip_of(reference["config"], -2)
    names = reference["class_names"].tolist()
    task = Task(names, [], torch.zeros(len(names), clip.model.visual.output_dim))
    adapter = config.begin(clip, task, torch.Generator())
    with torch.no_grad():
        for name, tensor in trained(config.names, reference["prompt_parameter_names"]).items():
            adapter.parameters[name].copy_(tensor)
    labels = torch.tensor([0, 2, 1])
    loss = adapter.loss(Batch(labels, images=torch.from_numpy(reference["images"])))
    logits = torch.from_numpy(reference["logits"])
    torch.testing.assert_close(loss.detach(), torch.nn.functional.cross_entropy(logits, labels), **CLOSE)
