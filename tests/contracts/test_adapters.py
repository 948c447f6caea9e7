"""What every registered adapter must do."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from patchsae.pipeline.adapters import methods
from patchsae.pipeline.adapters.adapter import Adapter, AdapterConfig, Batch, Task
from patchsae.pipeline.backbones.backbone import Backbone, ExtractConfig, Outline
from patchsae.pipeline.backbones.towers.shapes import shapes_of
from patchsae.pipeline.backbones.towers.vit import ClipVit
from patchsae.pipeline.backbones.weights import state_digest
from patchsae.pipeline.core import registry
from tests.support.clips import random_clip

KINDS = registry.variants(methods, AdapterConfig)
NAMES = ["cat", "traffic light", "annual_crop land"]
TEMPLATES = ["a photo of a {}."]
# What makes a kind fit the small towers, and its loss the plain cross-entropy of the zero-shot classifier. A new kind
# whose defaults do so needs no line here.
OWN: dict[str, dict[str, Any]] = {
    "coop": {"n_ctx": 4, "context": "a photo of a"},
    "fine_tune": {"logit_scale": random_clip().logit_scale},
    "ivlp": {"depth_image": 3, "depth_text": 2},
    "lora": {"dropout": 0.0},
    "maple": {"depth": 3},
    "promptsrc": {"depth_image": 2, "depth_text": 3},
    "vpt": {"depth": 4},
}
OTHER_LOSS = {"promptsrc"}
BEGINS_ZERO_SHOT = {"coop", "fine_tune", "linear_probe", "lora"}
TRAINS_WEIGHTS = {"fine_tune"}


@pytest.fixture(params=sorted(KINDS))
def config(request: pytest.FixtureRequest) -> AdapterConfig:
    return KINDS[request.param](backbone="clip", dataset="images", **OWN.get(request.param, {}))


def kind_of(config: AdapterConfig) -> str:
    return str(type(config).model_fields["kind"].default)


def task_of(clip: ClipVit) -> Task:
    with torch.no_grad():
        return Task(NAMES, TEMPLATES, clip.class_embeddings(NAMES, TEMPLATES, renormalise=True))


def batch_of(n: int = 6) -> Batch:
    images = torch.randn((n, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    clip = random_clip()
    with torch.no_grad():
        features = normalize(clip.tail(clip.head(images)), dim=-1)
    return Batch(torch.arange(n) % len(NAMES), images, features)


def begun(config: AdapterConfig, clip: ClipVit) -> Adapter:
    return config.begin(clip, task_of(random_clip()), torch.Generator().manual_seed(0))


def trained(config: AdapterConfig, clip: ClipVit, n_steps: int = 8) -> tuple[Adapter, list[float]]:
    """The adapter after some steps on one batch, and its losses before them and after the last."""
    adapter, batch = begun(config, clip), batch_of()
    optimiser = torch.optim.Adam(adapter.parameters.values(), lr=2e-3)
    losses = []
    for _ in range(n_steps):
        loss = adapter.loss(batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return adapter, [*losses, float(adapter.loss(batch).detach())]


def logits_of(backbone: Backbone) -> Tensor:
    images = batch_of().images
    assert images is not None
    with torch.inference_mode():
        features = normalize(backbone.tail(backbone.head(images)), dim=-1)
        classes = backbone.class_embeddings(NAMES, TEMPLATES, renormalise=True)
    return backbone.logit_scale * features @ classes.T


def outline_of(clip: ClipVit) -> Outline:
    return Outline(clip.n_blocks, clip.width, clip.layout, clip.image_size, shapes_of(clip.state()))


def test_the_loss_falls(config: AdapterConfig) -> None:
    _, losses = trained(config, random_clip())
    assert losses[-1] < losses[0]


def test_what_is_trained_are_float32_leaves_that_all_get_a_gradient(config: AdapterConfig) -> None:
    adapter = begun(config, random_clip())
    adapter.loss(batch_of()).backward()
    assert adapter.parameters
    for name, parameter in adapter.parameters.items():
        assert parameter.is_leaf and parameter.dtype == torch.float32, name
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


def test_the_adapted_backbone_gives_the_logits_of_training(config: AdapterConfig) -> None:
    adapter, losses = trained(config, random_clip())
    adapted = config.apply(random_clip(), adapter.tensors()).to("cpu")
    if kind_of(config) not in OTHER_LOSS:
        loss = float(cross_entropy(logits_of(adapted), batch_of().labels))
        assert loss == pytest.approx(losses[-1], rel=1e-4)
    before = config.apply(random_clip(), begun(config, random_clip()).tensors()).to("cpu")
    assert not torch.allclose(logits_of(adapted), logits_of(before), atol=1e-3)


def test_it_begins_as_the_zero_shot_classifier_if_it_says_so(config: AdapterConfig) -> None:
    adapted = config.apply(random_clip(), begun(config, random_clip()).tensors()).to("cpu")
    is_same = torch.allclose(logits_of(adapted), logits_of(random_clip()), rtol=1e-4, atol=1e-4)
    assert is_same == (kind_of(config) in BEGINS_ZERO_SHOT)


def test_head_and_tail_are_the_whole_model_wherever_it_is_cut(config: AdapterConfig) -> None:
    tensors = trained(config, random_clip())[0].tensors()
    images = batch_of().images
    assert images is not None
    features = []
    for block in (-1, -2, 0):
        adapted = config.apply(random_clip(ExtractConfig(hook_block=block)), tensors).to("cpu")
        with torch.inference_mode():
            activations = adapted.head(images)
            features.append(adapted.tail(activations))
        assert activations.shape == (len(images), adapted.layout.n_tokens, adapted.width)
    torch.testing.assert_close(features[0], features[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features[0], features[2], rtol=1e-4, atol=1e-5)


def test_a_plan_knows_the_tokens_of_the_adapted_backbone(config: AdapterConfig) -> None:
    clip = random_clip()
    outline = outline_of(clip)
    config.check(outline)
    adapted = config.apply(clip, begun(config, random_clip()).tensors())
    found = config.adapted(outline)
    for name in ("n_blocks", "width", "layout", "image_size"):
        assert getattr(found, name) == getattr(adapted, name)


def test_training_leaves_the_weights_of_the_backbone_as_they_are(config: AdapterConfig) -> None:
    clip = random_clip()
    before = {name: tensor.clone() for name, tensor in clip.state().items()}
    weights = dict(clip.state())
    trained(config, clip)
    if kind_of(config) in TRAINS_WEIGHTS:
        assert any(not torch.equal(weights[name], tensor) for name, tensor in before.items())
    else:
        assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())


def test_the_digest_of_the_adapted_backbone_tells_what_was_learnt(config: AdapterConfig) -> None:
    first = config.apply(random_clip(), begun(config, random_clip()).tensors())
    second = config.apply(random_clip(), trained(config, random_clip())[0].tensors())
    again = config.apply(random_clip(), trained(config, random_clip())[0].tensors())
    digests = [state_digest(one.state()) for one in (first, second, again)]
    assert digests[0] != digests[1] and digests[1] == digests[2]
    assert json.loads(json.dumps(first.settings)) == first.settings != random_clip().settings


def test_two_adapters_of_one_kind_do_not_disturb_each_other(config: AdapterConfig) -> None:
    one, other = begun(config, random_clip()), trained(config, random_clip(), n_steps=3)[0]
    alone = config.apply(random_clip(), copy.deepcopy(one.tensors())).to("cpu")
    expected = logits_of(alone)
    beside = config.apply(random_clip(), other.tensors()).to("cpu")
    assert not torch.equal(logits_of(beside), expected)
    assert torch.equal(logits_of(alone), expected)


def test_state_and_parameters_are_all_that_training_depends_on(config: AdapterConfig) -> None:
    adapter, _ = trained(config, random_clip())
    adapter.end_epoch(0, 2)
    restored = config.begin(random_clip(), task_of(random_clip()), torch.Generator().manual_seed(7))
    with torch.no_grad():
        for name, tensor in adapter.parameters.items():
            restored.parameters[name].copy_(tensor)
    restored.restore({name: tensor.clone() for name, tensor in adapter.state().items()})
    for one in (adapter, restored):
        one.end_epoch(1, 2)
    assert adapter.tensors().keys() == restored.tensors().keys()
    for name, tensor in adapter.tensors().items():
        torch.testing.assert_close(restored.tensors()[name], tensor, rtol=0, atol=0)
    torch.testing.assert_close(restored.loss(batch_of()), adapter.loss(batch_of()), rtol=0, atol=0)
