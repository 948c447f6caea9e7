"""Checkpoints in the formats people have give the same weights, and those of other models are recognised."""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from patchsae.pipeline.backbones import models
from patchsae.pipeline.backbones.checkpoints.read import read_header
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.backbones.towers.make import make_model, outline_model
from patchsae.pipeline.backbones.weights import identities_of
from patchsae.pipeline.core.open_clip_data import model_config
from patchsae.storage.errors import UserError

State = dict[str, torch.Tensor]


class OpenAiModel(torch.nn.Module):
    """A module with the attributes that OpenAI's archives have."""

    def __init__(self, name: str, state: State) -> None:
        super().__init__()
        model = make_model(model_config(name))
        model.load_state_dict(state)
        for part in ("visual", "transformer", "token_embedding", "ln_final"):
            setattr(self, part, getattr(model, part))
        for part in ("positional_embedding", "text_projection", "logit_scale"):
            self.register_parameter(part, getattr(model, part))
        self.register_buffer("input_resolution", torch.tensor(32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.visual(images) * self.logit_scale


def of_training(state: State, path: Path) -> None:
    """As open_clip's training on several devices saves it."""
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}, "optimizer": {}}, path
    )


def of_openai(state: State, path: Path) -> None:
    """A TorchScript archive with half-precision weights."""
    module = OpenAiModel("patchsae-tiny", state).half()
    torch.jit.save(torch.jit.trace(module.float(), torch.zeros(1, 3, 32, 32), check_trace=False).half(), path)


def transformers_names(state: State) -> State:
    """The state dict with the names and shapes of a `CLIPModel` of transformers."""
    names: State = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "vision_model.embeddings.position_ids": torch.arange(17)[None],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
    }
    for kind in ("weight", "bias"):
        names[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        names[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
        names[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        for tower, prefix, n_blocks in (
            ("vision_model", "visual.transformer", 3),
            ("text_model", "transformer", 1),
        ):
            for block in range(n_blocks):
                here, there = f"{tower}.encoder.layers.{block}", f"{prefix}.resblocks.{block}"
                parts = state[f"{there}.attn.in_proj_{kind}"].chunk(3)
                for one, tensor in zip("qkv", parts, strict=True):
                    names[f"{here}.self_attn.{one}_proj.{kind}"] = tensor
                for theirs, ours in (
                    ("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"),
                ):  # fmt: skip
                    names[f"{here}.{theirs}.{kind}"] = state[f"{there}.{ours}.{kind}"]
    return {name: tensor.contiguous() for name, tensor in names.items()}


FORMATS: dict[str, Callable[[State, Path], Any]] = {
    "training.pt": of_training,
    "openai.pt": of_openai,
    "half.safetensors": lambda state, path: save_file(state, path),
    "clip_model.safetensors": lambda state, path: save_file(transformers_names(state), path),
    "pytorch_model.bin": lambda state, path: torch.save(transformers_names(state), path),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_weights(
    tiny_checkpoint: Path, tiny_model: str, tmp_path: Path, name: str
) -> None:
    # Numbers that half precision holds, so that every format holds the same.
    state = {one: tensor.half() for one, tensor in load_file(tiny_checkpoint).items()}
    whole = tmp_path / "whole.safetensors"
    save_file({one: tensor.float() for one, tensor in state.items()}, whole)
    path = tmp_path / name
    if name == "openai.pt":
        # Only of models that compute QuickGELU, see below.
        of_openai({one: tensor.float() for one, tensor in state.items()}, path)
        assert {n: t.shape for n, t in read_header(path).items()} == {n: t.shape for n, t in state.items()}
    else:
        FORMATS[name](state, path)
    expected = OpenClipConfig(model=tiny_model, checkpoint=str(whole)).build({})
    found = OpenClipConfig(model=tiny_model, checkpoint=str(path))
    assert found.outline() == OpenClipConfig(model=tiny_model, checkpoint=str(whole)).outline()
    assert identities_of(found.build({}))[0] == identities_of(expected)[0]


def test_the_identity_is_that_of_earlier_versions(tiny_checkpoint: Path, tiny_model: str) -> None:
    backbone = OpenClipConfig(model=tiny_model, checkpoint=str(tiny_checkpoint)).build({})
    model, _, _ = open_clip.create_model_and_transforms(tiny_model, pretrained=str(tiny_checkpoint))
    assert backbone.settings == {"preprocess": model.visual.preprocess_cfg}
    state = model.state_dict()
    assert backbone.state().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.state().items())


def header_file(name: str, path: Path) -> Path:
    """A checkpoint of an architecture of open_clip with zeros for weights, which take no space in the file."""
    state = outline_model(model_config(name)).state_dict()
    save_file({one: torch.zeros(tensor.shape, dtype=torch.bool) for one, tensor in state.items()}, path)
    return path


def test_a_checkpoint_of_another_model_names_the_model_it_fits(tmp_path: Path) -> None:
    path = header_file("ViT-S-32", tmp_path / "small.safetensors")
    with pytest.raises(UserError) as refused:
        OpenClipConfig(model="ViT-S-16", checkpoint=str(path)).outline()
    assert str(refused.value) == (
        f"checkpoint {path}: does not load as ViT-S-16 (tensors of another shape: 1 of 302, such as "
        "`visual.conv1.weight` is (384, 3, 32, 32), not (384, 3, 16, 16)); it fits ViT-S-32: give that as `model`."
    )
    # Positions of another number of patches are interpolated, as open_clip does.
    state = load_file(path)
    state["visual.positional_embedding"] = torch.zeros(26, 384, dtype=torch.bool)
    save_file(state, path)
    assert OpenClipConfig(model="ViT-S-32", checkpoint=str(path)).outline().layout.n_tokens == 50
    state["visual.positional_embedding"] = torch.zeros(27, 384, dtype=torch.bool)
    save_file(state, path)
    with pytest.raises(UserError, match=r"`visual.positional_embedding` is \(27, 384\), not \(50, 384\)"):
        OpenClipConfig(model="ViT-S-32", checkpoint=str(path)).outline()


def test_a_tower_that_cannot_be_cut_is_refused_before_its_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "never read.pt"
    path.write_bytes(b"")
    for name in ("RN50", "convnext_tiny"):
        with pytest.raises(UserError, match="only vision transformers can be cut"):
            OpenClipConfig(model=name, checkpoint=str(path)).build({})


def test_files_that_are_no_state_dict_say_what_to_do(
    tiny_checkpoint: Path, tiny_model: str, tmp_path: Path
) -> None:
    path = tmp_path / "wrapped.pt"
    torch.save({"epoch": 1, "model": load_file(tiny_checkpoint)}, path)
    with pytest.raises(
        UserError, match=r"its state dict in the entry `model`; save that alone: torch.save\("
    ):
        OpenClipConfig(model=tiny_model, checkpoint=str(path)).outline()
    siglip = tmp_path / "siglip.safetensors"
    save_file({"vision_model.head.probe": torch.zeros(1, 1, 8)}, siglip)
    with pytest.raises(UserError, match=r"is a SiglipModel of transformers.*open_clip_model.safetensors"):
        OpenClipConfig(model=tiny_model, checkpoint=str(siglip)).outline()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (argparse.Namespace(lr=1.0), "it holds an object of argparse.Namespace, and only tensors are read"),
        (b"", "torch did not write it, or not to its end"),
        (b"hello there", "torch did not write it, or not to its end"),
        (b"PK\x03\x04, and the rest was not downloaded", "torch did not write it, or not to its end"),
        (pickle.dumps({"state_dict": Path}), ".*only (tensors|they) are read"),
    ],
    ids=["namespace", "empty", "text", "part of a file", "plain pickle"],
)
def test_a_file_that_is_not_read_is_one_sentence_without_advice_to_execute_it(
    tmp_path: Path, tiny_model: str, data: Any, why: str
) -> None:
    path = tmp_path / "odd.pt"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        torch.save({"state_dict": {}, "args": data}, path)
    with pytest.raises(UserError, match=rf"cannot be read as a state dict \(({why})\); save") as caught:
        OpenClipConfig(model=tiny_model, checkpoint=str(path)).outline()
    assert str(caught.value).isprintable()


def test_a_numpy_file_is_refused_before_a_run_if_it_is_broken_or_no_siglip(
    tmp_path: Path, tiny_model: str
) -> None:
    path = tmp_path / "siglip.npz"
    config = OpenClipConfig(model=tiny_model, checkpoint=str(path))
    for name in ("img/embedding/kernel", "params/img/embedding/kernel"):
        np.savez(path, **{name: np.zeros(9)})
        config.outline()
    whole = path.read_bytes()
    for data in (whole[:-30], b"", b"hello there"):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"siglip\.npz: cannot be read as an archive of arrays \(.*; get"):
            config.outline()
    np.savez(path, weights=np.zeros(9))
    for refuse in (OpenClipConfig.outline, lambda config: config.build({})):
        with pytest.raises(
            UserError, match=r"siglip\.npz: has no array whose name begins with `params/img/`"
        ):
            refuse(config)


def test_an_assertion_of_the_loader_is_a_sentence(
    tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As open_clip has it for NumPy weights of another size."""

    def load(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(models.open_clip, "load_into", load)
    np.savez(tmp_path / "siglip.npz", **{"params/img/embedding/kernel": np.zeros(9)})
    config = OpenClipConfig(model=tiny_model, checkpoint=str(tmp_path / "siglip.npz"))
    with pytest.raises(UserError, match=r"siglip\.npz: does not load as patchsae-tiny \(AssertionError"):
        config.build({})


def test_a_checkpoint_trained_with_another_activation_is_refused(
    tiny_checkpoint: Path, tiny_model: str, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    described = {**model_config(tiny_model), "quick_gelu": True}
    (folder / f"{tiny_model}-quickgelu.json").write_text(json.dumps(described))
    open_clip.add_model_config(folder)
    try:
        state = load_file(tiny_checkpoint)
        openai = tmp_path / "openai.pt"
        of_openai(state, openai)
        with pytest.raises(UserError, match=r"is a file of OpenAI, .* give `model: patchsae-tiny-quickgelu`"):
            OpenClipConfig(model=tiny_model, checkpoint=str(openai)).outline()
        quick = OpenClipConfig(model=f"{tiny_model}-quickgelu", checkpoint=str(openai)).build({})
        plain = OpenClipConfig(model=tiny_model, checkpoint=str(tiny_checkpoint)).build({})
        assert identities_of(quick)[0] != identities_of(plain)[0]
        theirs = tmp_path / "model.safetensors"
        save_file(transformers_names(state), theirs)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": {}}))
        with pytest.raises(
            UserError, match=r"config.json beside it .* QuickGELU, and patchsae-tiny computes GELU"
        ):
            OpenClipConfig(model=tiny_model, checkpoint=str(theirs)).outline()
    finally:
        open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
        open_clip.factory._MODEL_CONFIGS.pop(f"{tiny_model}-quickgelu")


def test_a_hostile_archive_is_refused(tiny_checkpoint: Path, tiny_model: str, tmp_path: Path) -> None:
    sound = tmp_path / "sound.pt"
    of_openai(load_file(tiny_checkpoint), sound)
    with zipfile.ZipFile(sound) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    pickled = next(name for name in entries if name.endswith("/data.pkl"))
    first = pickled.replace("data.pkl", "data/0")
    for changed, message in (
        ({pickled: b"cos\nsystem\n(S'true'\ntR."}, "refers to os.system"),
        ({first: b""}, "storage 0 does not hold its"),
        ({pickled: entries[pickled][:-20]}, "cannot be read as a state dict"),
        # Python's unpickler would take 32 GB for this.
        ({pickled: b"\x80\x02]r\xff\xff\xff\x7f."}, "numbers an object 2147483647"),
        ({pickled: None}, "has no data.pkl"),
    ):
        path = tmp_path / "hostile.pt"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in {**entries, **changed}.items():
                if data is not None:
                    archive.writestr(name, data)
        with pytest.raises(UserError, match=message):
            OpenClipConfig(model=tiny_model, checkpoint=str(path)).outline()
