"""Learned prompts: the fast arithmetic against a plain one, and what each method makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, l1_loss, log_softmax, normalize

from benchmarks.adapt import PlainMaple
from patchsae.pipeline.adapters.adapter import AdapterConfig, Batch, Task
from patchsae.pipeline.adapters.methods.coop import CoopConfig
from patchsae.pipeline.adapters.methods.fine_tune import FineTuneConfig
from patchsae.pipeline.adapters.methods.ivlp import IvlpConfig
from patchsae.pipeline.adapters.methods.lora import LoraConfig
from patchsae.pipeline.adapters.methods.maple import MapleConfig
from patchsae.pipeline.adapters.methods.promptsrc import PromptsrcConfig
from patchsae.pipeline.adapters.methods.vpt import VptConfig
from patchsae.pipeline.adapters.prompts.regulated import RegulatedAdapter, Regulation
from patchsae.pipeline.adapters.prompts.texts import LearnedContext
from patchsae.pipeline.backbones.backbone import ExtractConfig, as_dtype
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.backbones.models.shapes_clip import ShapesClipConfig
from patchsae.pipeline.backbones.towers.vit import ClipVit
from patchsae.pipeline.core.open_clip_data import imagenet_templates
from patchsae.storage.errors import UserError
from tests.support.clips import random_clip

NAMES = ["cat", "annual_crop land", "traffic light pole", "dog"]
ENTRY = {"backbone": "clip", "dataset": "images"}
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}


def task_of(clip: ClipVit, templates: list[str] | None = None) -> Task:
    own = templates or ["a photo of a {}."]
    with torch.no_grad():
        return Task(NAMES, own, clip.class_embeddings(NAMES, own, renormalise=True))


def batch_of(clip: ClipVit, n: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn((n, 3, *clip.image_size), generator=generator)
    with torch.no_grad():
        features = normalize(clip.tail(clip.head(images)), dim=-1)
    return Batch(torch.arange(n) % len(NAMES), images, features)


@pytest.mark.parametrize("context", ["a photo of a", None])
def test_the_gradients_of_maple_are_those_of_a_plain_implementation(context: str | None) -> None:
    clip = random_clip()
    config = MapleConfig(**ENTRY, depth=3, context=context)
    adapter = config.begin(clip, task_of(clip), torch.Generator().manual_seed(0))
    plain = PlainMaple(clip, [name.replace("_", " ") for name in NAMES], adapter.parameters)
    if context is None:
        # As CoOp's code does it: words that are replaced, one for each learned token.
        plain.tokens = clip.tokenizer([f"X X {name.replace('_', ' ')}." for name in NAMES])
    batch = batch_of(clip)
    assert batch.images is not None
    ours, theirs = adapter.loss(batch), plain.loss(batch.images, batch.labels)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    ours.backward()
    theirs.backward()
    for name, parameter in adapter.parameters.items():
        assert parameter.grad is not None and float(parameter.grad.norm()) > 0
        torch.testing.assert_close(parameter.grad, plain.parameters[name].grad, **CLOSE)
    assert not any(weight.requires_grad for weight in clip.model.parameters())


@pytest.mark.parametrize(
    "text", [{}, {"no_causal_mask": True}, {"pool_type": "last"}, {"pool_type": "eos", "eos_id": 49407}]
)
def test_every_kind_of_text_tower_reads_what_its_own_encoder_reads(text: dict[str, Any]) -> None:
    """With the words' own embeddings in place of learned tokens, nothing has changed."""
    clip = random_clip(**text)
    config = CoopConfig(**ENTRY, n_ctx=4, context="a photo of a")
    adapter = config.begin(clip, task_of(clip), torch.Generator())
    adapted = config.apply(clip, adapter.tensors())
    with torch.no_grad():
        ours = adapted.class_embeddings(NAMES, ["ignored {}"], renormalise=False)
        theirs = clip.class_embeddings(NAMES, ["a photo of a {}."], renormalise=True)
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_many_classes_in_parts_get_the_features_they_get_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = random_clip()
    vectors = [torch.randn(2, 24), torch.randn(2, 24)]
    alone = torch.cat([LearnedContext(clip, [name], 2, None).encode(vectors) for name in NAMES])
    monkeypatch.setattr("patchsae.pipeline.adapters.prompts.texts._CLASSES_PER_BATCH", 2)
    torch.testing.assert_close(LearnedContext(clip, NAMES, 2, None).encode(vectors), alone, **CLOSE)


def test_a_name_that_does_not_fit_behind_the_context_is_one_sentence() -> None:
    with pytest.raises(
        UserError, match="the class name 'a b c d e f g h' and 16 learned tokens are longer than the 24"
    ):
        LearnedContext(random_clip(), ["dog", "a b c d e f g h"], 16, None)


def test_prompts_of_the_last_block_reach_the_features() -> None:
    clip = random_clip()
    adapter = VptConfig(**ENTRY, depth=4, n_ctx=3).begin(
        clip, task_of(clip), torch.Generator().manual_seed(0)
    )
    adapter.loss(batch_of(clip)).backward()
    assert sorted(adapter.parameters) == [f"image.{block}" for block in range(4)]
    for parameter in adapter.parameters.values():
        assert parameter.grad is not None and float(parameter.grad.norm()) > 0


def test_a_tower_that_pools_patches_leaves_prompt_tokens_out() -> None:
    clip = random_clip()
    clip.visual.pool_type = "avg"
    config = VptConfig(**ENTRY, depth=1, n_ctx=3)
    adapted = config.apply(clip, {"image.0": torch.randn(3, 32)})
    images = batch_of(clip).images
    assert images is not None
    with torch.no_grad():
        last = clip.blocks[-1](adapted.head(images))
        expected = clip.visual.ln_post(last)[:, 1:-3].mean(dim=1) @ clip.visual.proj
        torch.testing.assert_close(adapted.tail(adapted.head(images)), expected, **CLOSE)


def test_promptsrc_adds_up_the_four_losses_of_its_code() -> None:
    clip = random_clip()
    templates = ["a {}.", "art of a {}."]
    config = PromptsrcConfig(**ENTRY, depth_image=2, depth_text=3, text_weight=3.0, image_weight=2.0)
    adapter = config.begin(clip, task_of(clip, templates), torch.Generator().manual_seed(0))
    assert isinstance(adapter, RegulatedAdapter)
    batch = batch_of(clip)
    assert batch.features is not None and batch.images is not None
    adapted = config.apply(clip, adapter.tensors())
    with torch.no_grad():
        raw = torch.stack(
            [clip.encode_text([t.format(n.replace("_", " ")) for t in templates]) for n in NAMES]
        )
        fixed = normalize(raw.mean(dim=1), dim=-1)
        image = normalize(adapted.tail(adapted.head(batch.images)), dim=-1)
        text = adapted.class_embeddings(NAMES, templates, renormalise=True)
        logits = clip.logit_scale * image @ text.T
        frozen = clip.logit_scale * batch.features @ fixed.T
        divergence = kl_div(log_softmax(logits, 1), log_softmax(frozen, 1), reduction="sum", log_target=True)
        expected = (
            cross_entropy(logits, batch.labels)
            + 3 * l1_loss(text, fixed)
            + 2 * l1_loss(image, batch.features)
            + divergence / logits.numel()
        )
    torch.testing.assert_close(adapter.loss(batch).detach(), expected, **CLOSE)


def test_promptsrc_saves_the_gaussian_average_of_its_epochs() -> None:
    clip, n_epochs = random_clip(), 6
    config = PromptsrcConfig(**ENTRY, depth_image=1, depth_text=1, average_mean=4, average_std=1.5)
    adapter = config.begin(clip, task_of(clip), torch.Generator().manual_seed(0))
    began = {name: tensor.clone() for name, tensor in adapter.tensors().items()}
    epochs = torch.arange(1.0, n_epochs + 1)
    weights = torch.exp(-0.5 * ((epochs - 4) / 1.5) ** 2)
    moved = (weights / weights.sum()) @ (epochs - 1)
    for epoch in range(n_epochs):
        if epoch == 3:
            # Stopped and continued: another adapter takes up state and parameters.
            state, parameters = adapter.state(), adapter.parameters
            adapter = config.begin(clip, task_of(clip), torch.Generator().manual_seed(9))
            adapter.restore(state)
            with torch.no_grad():
                for name, tensor in parameters.items():
                    adapter.parameters[name].copy_(tensor)
        adapter.end_epoch(epoch, n_epochs)
        with torch.no_grad():
            for tensor in adapter.parameters.values():
                tensor += 1
    for name, tensor in adapter.tensors().items():
        torch.testing.assert_close(tensor, began[name] + moved, **CLOSE)


@pytest.mark.parametrize(("mean", "n_epochs"), [(15.0, 20), (15.0, 3), (500.0, 4)])
def test_the_weights_of_epochs_add_up_to_one_wherever_the_mean_is(mean: float, n_epochs: int) -> None:
    regulation = Regulation(25, 10, mean, 1.0)
    weights = [regulation.epoch_weight(epoch, n_epochs) for epoch in range(n_epochs)]
    assert sum(weights) == pytest.approx(1)
    assert max(range(n_epochs), key=weights.__getitem__) == min(n_epochs, mean) - 1


def test_promptsrc_reads_the_sixty_templates_of_its_code() -> None:
    published = PromptsrcConfig(**ENTRY).prompts.templates
    assert len(published) == 60 and set(published) < set(imagenet_templates())
    assert "a jpeg corrupted photo of the {}." not in published and "itap of the {}." in published


PUBLISHED: list[tuple[type[AdapterConfig], dict[str, Any]]] = [
    (MapleConfig, {"n_ctx": 2, "depth": 9, "lr": 0.0035, "epochs": 5, "batch_size": 4}),
    (CoopConfig, {"n_ctx": 16, "context": None, "lr": 0.002, "epochs": 200, "batch_size": 32}),
    (VptConfig, {"n_ctx": 8, "depth": 12, "lr": 0.0025, "epochs": 5, "batch_size": 4}),
    (IvlpConfig, {"n_ctx_text": 4, "n_ctx_image": 4, "depth_text": 9, "lr": 0.0025, "epochs": 20}),
    (PromptsrcConfig, {"text_weight": 25, "image_weight": 10, "average_mean": 15, "average_std": 1}),
]


@pytest.mark.parametrize(("kind", "values"), PUBLISHED)
def test_defaults_are_the_published_hyperparameters(
    kind: type[AdapterConfig], values: dict[str, Any]
) -> None:
    config = kind(**ENTRY)
    shared = {
        "weight_decay": 5e-4,
        "momentum": 0.9,
        "optimiser": "sgd",
        "warmup_epochs": 1,
        "warmup_lr": 1e-5,
    }
    found = config.model_dump()
    assert {name: found[name] for name in {**values, **shared}} == {**values, **shared}


def test_maple_on_vit_b16_trains_as_many_numbers_as_published() -> None:
    outline = OpenClipConfig(model="ViT-B-16-quickgelu", pretrained="openai").outline()
    for depth, n_trained in ((9, 3_555_072), (3, 1_185_024)):
        config = MapleConfig(**ENTRY, depth=depth)
        config.check(outline)
        shapes = config.shapes(config._towers(outline.shapes))
        assert sum(int(torch.tensor(shape).prod()) for shape in shapes.values()) == n_trained


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MapleConfig(**ENTRY),
            "`depth` is 9, and the image tower of `clip` has 6 blocks; set it to at most 2",
        ),
        (
            MapleConfig(**ENTRY, depth=3),
            "`depth` is 3, and the text tower of `clip` has 2 blocks; set it to at most 2",
        ),
        (
            VptConfig(**ENTRY),
            "`depth` is 12, and the image tower of `clip` has 6 blocks; set it to at most 6",
        ),
        (IvlpConfig(**ENTRY, depth_image=6), "`depth_text` is 9, and the text tower of `clip` has 2 blocks"),
        (
            IvlpConfig(**ENTRY, depth_image=7),
            "`depth_image` is 7, and the image tower of `clip` has 6 blocks",
        ),
        (CoopConfig(**ENTRY, n_ctx=4, context="a photo"), "`context` has 2 words, and `n_ctx` is 4"),
        (CoopConfig(**ENTRY, n_ctx=25), "25 tokens before a class name are too many, .* reads 28 in all"),
    ],
)
def test_prompts_that_do_not_fit_the_towers_are_one_sentence(config: AdapterConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.check(ShapesClipConfig().outline())


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("ViT-B-16-SigLIP", VptConfig, "prompts go into open_clip's own vision transformers"),
        ("ViT-B-16-SigLIP", CoopConfig, "prompts go into CLIP's own text tower"),
        ("coca_ViT-B-32", CoopConfig, "prompts go into CLIP's own text tower"),
    ],
)
def test_towers_of_others_are_refused(model: str, kind: type[AdapterConfig], message: str) -> None:
    from patchsae.pipeline.backbones.towers.architecture import outline_of
    from patchsae.pipeline.core.open_clip_data import model_config

    outline = outline_of(model_config(model), ExtractConfig(), model)
    with pytest.raises(UserError, match=message):
        kind(**ENTRY).check(outline)


def test_bfloat16_towers_train_float32_prompts_near_float32() -> None:
    losses, gradients = [], []
    for precision in ("float32", "bfloat16"):
        clip = random_clip()
        config = MapleConfig(**ENTRY, depth=3, precision=precision)
        adapter = config.begin(clip, task_of(clip), torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = adapter.loss(batch_of(clip))
        assert clip.model.visual.proj.dtype == as_dtype(precision)
        loss.backward()
        losses.append(float(loss.detach()))
        gradient = adapter.parameters["projections.1.weight"].grad
        assert gradient is not None and gradient.dtype == torch.float32
        gradients.append(gradient)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    cosine = torch.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0)
    assert float(cosine) > 0.97


def test_random_contexts_differ_by_seed_and_not_by_call() -> None:
    clip = random_clip()
    config = CoopConfig(**ENTRY)

    def begun(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return config.begin(clip, task_of(clip), generator).tensors()["text.0"]

    assert torch.equal(begun(1), begun(1)) and not torch.equal(begun(1), begun(2))
    assert float(begun(1).std()) == pytest.approx(0.02, rel=0.15)


def test_maple_deeper_maps_begin_alike_and_the_first_on_its_own() -> None:
    clip = random_clip()
    config = MapleConfig(**ENTRY, depth=3)
    tensors = config.begin(clip, task_of(clip), torch.Generator().manual_seed(0)).tensors()
    weights = [tensors[f"projections.{block}.weight"] for block in range(3)]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])
    assert float(weights[0].abs().max()) <= 24**-0.5


def test_prompts_that_would_not_be_read_are_refused() -> None:
    for kind in (MapleConfig, CoopConfig, IvlpConfig):
        with pytest.raises(ValueError, match="`prompts` is not read, since class prompts are learned"):
            kind(**ENTRY, prompts={"templates": "imagenet"})
    for other in (VptConfig, PromptsrcConfig):
        assert other(**ENTRY, prompts={"templates": "imagenet"}).prompts.templates == "imagenet"


def test_two_adapters_over_one_backbone_do_not_disturb_each_other() -> None:
    clip, images = random_clip(), torch.randn(2, 3, 32, 32)
    config = MapleConfig(**ENTRY, depth=2)
    made = [
        config.begin(random_clip(), task_of(clip), torch.Generator().manual_seed(seed)).tensors()
        for seed in (1, 2)
    ]
    with torch.inference_mode():
        plain = clip.tail(clip.head(images))
        first = config.apply(clip, made[0])
        expected = first.tail(first.head(images))
        second = config.apply(clip, made[1])
        assert not torch.allclose(second.tail(second.head(images)), expected)
        assert torch.equal(first.tail(first.head(images)), expected)
        assert torch.equal(clip.tail(clip.head(images)), plain)
    assert clip.layout.n_suffix == 0 and first.layout.n_suffix == 2


def test_a_plan_refuses_a_context_whose_words_the_backbone_does_not_know() -> None:
    base = ShapesClipConfig()
    MapleConfig(**ENTRY, depth=2).check_classes(base, ["circle"], ["ignored {}"])
    with pytest.raises(UserError, match="does not know the word 'sketch'"):
        MapleConfig(**ENTRY, depth=2, context="a sketch of a").check_classes(base, ["circle"], [])
    with pytest.raises(UserError, match="does not know the word 'dog'"):
        CoopConfig(**ENTRY).check_classes(base, ["circle", "dog"], [])


def test_a_prediction_counts_texts_only_where_the_text_tower_is_run() -> None:
    counts = {kind: kind(**ENTRY).texts_per_step(100, 3) for kind in (MapleConfig, CoopConfig, VptConfig)}
    assert 0 < counts[MapleConfig] == counts[CoopConfig] < 100 and counts[VptConfig] == 0
    assert LoraConfig(**ENTRY).texts_per_step(100, 3) == 0
    assert FineTuneConfig(**ENTRY).texts_per_step(100, 3) == 300
