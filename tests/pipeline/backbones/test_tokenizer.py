"""Models whose tokenizer is one of `transformers`: what they need is said before weights are read."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants

from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.backbones.towers.make import make_model
from patchsae.pipeline.core.hub import from_hub
from patchsae.pipeline.core.open_clip_data import model_config
from patchsae.storage.errors import UserError
from tests.support.checkpoints import save_weights


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name)
    )


@pytest.mark.parametrize("model", ["ViT-B-16-SigLIP2", "ViT-L-14-CLIPA", "xlm-roberta-base-ViT-B-32"])
def test_a_missing_package_is_named_before_weights_are_fetched(
    model: str, without_transformers: None
) -> None:
    tag = open_clip.list_pretrained_tags_by_model(model)[0]
    for refuse in (OpenClipConfig.outline, lambda config: config.build({})):
        with pytest.raises(UserError, match=rf"{model}: its tokenizer needs the package .*patchsae\[hf\]"):
            refuse(OpenClipConfig(model=model, pretrained=tag))


def test_a_folder_is_only_for_models_that_need_one(
    tiny_model: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    config = OpenClipConfig(model=tiny_model, checkpoint=str(tiny_checkpoint), tokenizer=str(tmp_path))
    with pytest.raises(UserError, match="patchsae-tiny has open_clip's own tokenizer; leave `tokenizer` out"):
        config.outline()


def test_the_cache_is_used_at_once_where_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*address: object) -> None:
        raise socket.gaierror("no network")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    with from_hub():
        assert constants.is_offline_mode()
    assert not constants.is_offline_mode()
    with pytest.raises(
        UserError, match=r"cannot fetch the weights `laion2b_s34b_b88k` of ViT-B-16 .*as `checkpoint`"
    ):
        OpenClipConfig(model="ViT-B-16", pretrained="laion2b_s34b_b88k").build({})
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address: [])
    with from_hub():
        assert not constants.is_offline_mode()


def test_a_tokenizer_comes_from_its_folder(tiny_model: str, tmp_path: Path) -> None:
    """Runs where `transformers` is installed (extra `hf`)."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    def write(folder: Path, words: list[str]) -> None:
        vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)

    described = model_config(tiny_model)
    described["text_cfg"] |= {
        "hf_tokenizer_name": "nobody/words",
        "pool_type": "last",
        "no_causal_mask": True,
    }
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "patchsae-tiny-words.json").write_text(json.dumps(described))
    open_clip.add_model_config(tmp_path / "models")
    checkpoint, folder = tmp_path / "words.safetensors", tmp_path / "tokenizer"
    torch.manual_seed(0)
    save_weights(make_model(described), checkpoint)
    config = OpenClipConfig(model="patchsae-tiny-words", checkpoint=str(checkpoint), tokenizer=str(folder))
    with pytest.raises(
        UserError, match=r"has no tokenizer_config.json; .*all files of the tokenizer `nobody/words`"
    ):
        config.outline()
    write(folder, ["circle", "square"])
    assert config.outline().n_blocks == 3
    backbone, fingerprint = config.build({}), config.fingerprint()
    assert backbone.tokenizer(["circle square"])[0, :3].tolist() == [3, 4, 0]  # type: ignore[attr-defined]
    write(folder, ["square", "circle"])
    assert config.fingerprint() != fingerprint
    assert config.build({}).settings["tokenizer"] != backbone.settings["tokenizer"]
