"""Checkpoints in the format of the methods' own code: read exactly, or refused in one sentence."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from patchsae.pipeline.adapters.adapt import load_adapter
from patchsae.pipeline.adapters.adapter import AdapterConfig, Task
from patchsae.pipeline.adapters.methods.coop import CoopConfig
from patchsae.pipeline.adapters.methods.ivlp import IvlpConfig
from patchsae.pipeline.adapters.methods.maple import MapleConfig
from patchsae.pipeline.adapters.methods.promptsrc import PromptsrcConfig
from patchsae.pipeline.adapters.methods.vpt import VptConfig
from patchsae.pipeline.backbones.backbone import Outline
from patchsae.pipeline.backbones.towers.shapes import shapes_of
from patchsae.pipeline.backbones.towers.vit import ClipVit
from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.experiment.experiment import parse
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.clips import random_clip
from tests.support.nodes import run_all

NAMES = ["cat", "traffic light"]
FIELDS: dict[type[AdapterConfig], dict[str, Any]] = {
    MapleConfig: {"depth": 3},
    CoopConfig: {"n_ctx": 5},
    VptConfig: {"depth": 2},
    IvlpConfig: {"depth_image": 3, "depth_text": 2, "n_ctx_image": 3},
    PromptsrcConfig: {"depth_image": 2, "depth_text": 3},
}
State = dict[str, Tensor]


def outline_of(clip: ClipVit) -> Outline:
    return Outline(clip.n_blocks, clip.width, clip.layout, clip.image_size, shapes_of(clip.state()))


def trained(kind: type[AdapterConfig], clip: ClipVit, **fields: Any) -> State:
    """What a method begins with, moved a little, by our names."""
    config = kind(backbone="clip", dataset="images", **{**FIELDS[kind], **fields})
    task = Task(NAMES, ["a {}."], torch.zeros(2, 16))
    tensors = config.begin(clip, task, torch.Generator().manual_seed(3)).tensors()
    return {name: tensor + 0.01 * torch.randn(tensor.shape) for name, tensor in tensors.items()}


def official(kind: type[AdapterConfig], clip: ClipVit, tensors: State) -> State:
    """The state dict that the method's own code saves: its names, and all weights of its model in float16."""
    named: State = {}
    for name, tensor in tensors.items():
        what, number, *rest = name.split(".")
        n = int(number)
        if kind is CoopConfig:
            named["ctx"] = tensor
        elif name == "text.0":
            named["prompt_learner.ctx"] = tensor
        elif kind is MapleConfig and what == "text":
            named[f"prompt_learner.compound_prompts_text.{n - 1}"] = tensor
        elif what == "projections":
            part = "proj" if n == 0 else f"compound_prompt_projections.{n - 1}"
            named[f"prompt_learner.{part}.{rest[0]}"] = tensor
        elif name == "image.0":
            named["image_encoder.VPT"] = tensor
        else:
            named[f"{what}_encoder.transformer.resblocks.{n}.VPT_shallow"] = tensor
    before = "" if kind is CoopConfig else "prompt_learner."
    named[f"{before}token_prefix"] = torch.randn(7, 1, 24)
    named[f"{before}token_suffix"] = torch.randn(7, 20, 24)
    if kind is not CoopConfig:
        for name, tensor in clip.state().items():
            if name.startswith("visual."):
                named[name.replace("visual.", "image_encoder.")] = tensor
                if kind is PromptsrcConfig:
                    named[name.replace("visual.", "prompt_learner.ZS_image_encoder.")] = tensor
            elif name == "logit_scale":
                named[name] = tensor
            elif not name.startswith("token_embedding"):
                named[f"text_encoder.{name}"] = tensor
    return {name: tensor.detach().half() for name, tensor in named.items()}


def write(path: Path, state: State) -> None:
    """Dassl's file: beside the state dict it has the schedule, with an object of a class in it."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimiser = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimiser.step()
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 5)
    schedule = {"successor": successor, "cons_lr": 1e-5, "last_epoch": 5}
    torch.save(
        {
            "state_dict": state,
            "epoch": 5,
            "optimizer": optimiser.state_dict(),
            "scheduler": schedule,
            "val_result": None,
        },
        path,
    )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def reading(kind: type[AdapterConfig], path: Path, **fields: Any) -> AdapterConfig:
    return kind(backbone="clip", checkpoint=str(path), **{**FIELDS[kind], **fields})  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", FIELDS)
def test_a_checkpoint_of_the_methods_code_makes_the_backbone_it_was_saved_from(
    kind: type[AdapterConfig], tmp_path: Path
) -> None:
    clip, path = random_clip(), tmp_path / "model.pth.tar-5"
    tensors = trained(kind, clip)
    write(path, official(kind, clip, tensors))
    config = reading(kind, path)
    config.check(outline_of(clip))
    assert config.weights_file() == path
    found = config.read(clip)
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-3, atol=1e-4)
    images = torch.randn(2, 3, 32, 32)
    outputs = []
    with torch.inference_mode():
        for one in (found, tensors):
            adapted = config.apply(clip, one)
            image = normalize(adapted.tail(adapted.head(images)), dim=-1)
            outputs.append(image @ adapted.class_embeddings(NAMES, ["a {}."], True).T)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-2, atol=1e-3)


def of_depth_2(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith("prompt_learner.compound")}


def with_longer_context(state: State) -> State:
    longer = {n: torch.cat([t, t]) for n, t in state.items() if t.shape == (2, 24)}
    return {**state, **longer}


def of_wider_image_tower(state: State) -> State:
    return {**state, "prompt_learner.proj.weight": torch.zeros(48, 24).half()}


def with_other_weights(state: State) -> State:
    name = "image_encoder.conv1.weight"
    return {**state, name: torch.randn_like(state[name])}


def of_deeper_model(state: State) -> State:
    name = "image_encoder.transformer.resblocks.{}.ln_1.weight"
    return {**state, name.format(9): state[name.format(0)]}


def of_narrower_model(state: State) -> State:
    return {**state, "image_encoder.proj": state["image_encoder.proj"][:, :8].clone()}


def with_an_unknown_tensor(state: State) -> State:
    return {**state, "meta_net.linear1.weight": torch.zeros(2)}


def without_a_map(state: State) -> State:
    return {n: t for n, t in state.items() if n != "prompt_learner.compound_prompt_projections.1.bias"}


def with_nan(state: State) -> State:
    return {**state, "prompt_learner.ctx": torch.full((2, 24), torch.nan).half()}


REFUSED: list[tuple[Callable[[State], State], str, bool]] = [
    (
        of_depth_2,
        "its prompts have depth 1 in the text tower, and those of the adapter 3; write `depth: 1`",
        True,
    ),
    (with_longer_context, "`text.0` has 4 prompt tokens, and the adapter's has 2; write `n_ctx: 4`", True),
    (of_wider_image_tower, r"`projections.0.weight` is \(48, 24\), but \(32, 24\) for the backbone", True),
    (
        of_deeper_model,
        "has frozen weights `image_encoder.transformer.resblocks.9.*`, which the backbone has not",
        True,
    ),
    (of_narrower_model, r"`image_encoder.proj` is \(32, 8\), but \(32, 16\) in the backbone", True),
    (with_an_unknown_tensor, "`meta_net.linear1.weight`, which no checkpoint of MaPLe has", True),
    (without_a_map, "lacks `projections.2.bias`; give a whole checkpoint of MaPLe", True),
    (
        with_other_weights,
        "was trained with another backbone, since its frozen `image_encoder.conv1.weight`",
        False,
    ),
    (with_nan, "`text.0` is not finite", False),
]


@pytest.mark.parametrize(("change", "message", "at_plan_time"), REFUSED)
def test_a_checkpoint_that_does_not_fit_is_one_sentence(
    change: Callable[[State], State], message: str, at_plan_time: bool, tmp_path: Path
) -> None:
    clip, path = random_clip(), tmp_path / "model.pth.tar-5"
    write(path, change(official(MapleConfig, clip, trained(MapleConfig, clip))))
    config = reading(MapleConfig, path)
    with pytest.raises(UserError, match=message) as refused:
        config.read(clip)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)
    if not at_plan_time:
        config.check(outline_of(clip))
        return
    with pytest.raises(UserError) as planned:
        config.check(outline_of(clip))
    assert str(planned.value) == str(refused.value)


def test_a_checkpoint_of_another_depth_is_refused_and_not_filled_up(tmp_path: Path) -> None:
    """The reference loads one of depth 3 as if of depth 9, and leaves six prompts random."""
    clip, path = random_clip(), tmp_path / "model.pth.tar-2"
    write(path, official(MapleConfig, clip, trained(MapleConfig, clip, depth=2)))
    reading(MapleConfig, path, depth=2).check(outline_of(clip))
    with pytest.raises(
        UserError, match="depth 2 in the text tower, and those of the adapter 3; write `depth: 2`"
    ):
        reading(MapleConfig, path, depth=3).check(outline_of(clip))


def test_a_context_for_every_class_is_refused(tmp_path: Path) -> None:
    clip, path = random_clip(), tmp_path / "model.pth.tar-50"
    write(path, {"ctx": torch.zeros(7, 5, 24)})
    with pytest.raises(UserError, match="has a context of its own for each of 7 classes"):
        reading(CoopConfig, path).check(outline_of(clip))


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    clip, path = random_clip(), tmp_path / "model.pth.tar-5"
    write(path, official(MapleConfig, clip, trained(MapleConfig, clip)))
    with pytest.raises(UserError, match="which no checkpoint of CoOp has; give the kind of adapter"):
        reading(CoopConfig, path).check(outline_of(clip))
    write(tmp_path / "towers", {"logit_scale": torch.tensor(4.0)})
    with pytest.raises(UserError, match="has none of the prompts that a checkpoint of MaPLe has"):
        reading(MapleConfig, tmp_path / "towers").check(outline_of(clip))


def test_files_that_are_no_checkpoints_are_one_sentence(tmp_path: Path) -> None:
    outline = outline_of(random_clip())
    with pytest.raises(UserError, match="no such file"):
        reading(MapleConfig, tmp_path / "missing").check(outline)
    (tmp_path / "text").write_text("model")
    with pytest.raises(UserError, match="cannot be read as a state dict"):
        reading(MapleConfig, tmp_path / "text").check(outline)
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(UserError, match="holds no state dict"):
        reading(MapleConfig, tmp_path / "list").check(outline)
    whole = tmp_path / "whole"
    write(whole, {"ctx": torch.zeros(5, 24)})
    (tmp_path / "cut").write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(UserError, match="cut: cannot be read"):
        reading(CoopConfig, tmp_path / "cut").check(outline)


EXPERIMENT = """
name: read
datasets: {{digits: {{kind: digits, n_images: 60}}}}
backbones:
  tiny: {{kind: open_clip, model: patchsae-tiny, checkpoint: {weights!r}}}
adapters:
  it: {{kind: maple, backbone: tiny, checkpoint: {checkpoint!r}, depth: 1, n_ctx: {n_ctx}}}
saes:
  relu: {{kind: relu_l1, dataset: digits, backbone: it, n_latents: 64, batch_size: 64, n_steps: 2}}
"""


def test_an_experiment_reads_a_checkpoint_and_trains_nothing(
    tiny_checkpoint: Path, tmp_path: Path, store: Store
) -> None:
    path = tmp_path / "model.pth.tar-5"

    def nodes(n_ctx: int) -> dict[str, Node]:
        text = EXPERIMENT.format(weights=str(tiny_checkpoint), checkpoint=str(path), n_ctx=n_ctx)
        return {node.address: node for node in parse(text, "read").nodes()}

    found = nodes(2)
    clip: Any = found["weights/tiny"].config.build({})  # type: ignore[attr-defined]
    tensors = trained(MapleConfig, clip, depth=1)
    write(path, official(MapleConfig, clip, tensors))
    wanted = ["weights/tiny", "adapt/it", "weights/it"]
    done = run_all(store, [found[address] for address in wanted])
    read = load_adapter(done["adapt/it"])
    torch.testing.assert_close(read["text.0"], tensors["text.0"], rtol=1e-3, atol=1e-4)
    assert not list(done["adapt/it"].path.glob("**/*.parquet"))
    with pytest.raises(UserError, match="has 2 prompt tokens, and the adapter's has 3; write `n_ctx: 2`"):
        nodes(3)["weights/it"].config.outline()  # type: ignore[attr-defined]
    # Another file in its place is read anew.
    write(path, official(MapleConfig, clip, trained(MapleConfig, clip, depth=1)))
    again = run_all(store, [nodes(2)[address] for address in wanted])
    assert not torch.equal(load_adapter(again["adapt/it"])["text.0"], read["text.0"])
    assert again["weights/it"].identity != done["weights/it"].identity


class Harmful:
    """Its pickle creates a file when it is loaded as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    clip, path, made = random_clip(), tmp_path / "model.pth.tar-5", tmp_path / "made"
    state = official(CoopConfig, clip, trained(CoopConfig, clip))
    torch.save({"state_dict": state, "scheduler": Harmful(made)}, path)
    assert reading(CoopConfig, path).read(clip).keys() == {"text.0"}
    assert not made.exists()
    torch.load(path, weights_only=False)
    assert made.exists()
