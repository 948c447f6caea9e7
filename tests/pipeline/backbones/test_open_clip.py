from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from patchsae.pipeline.backbones import weights
from patchsae.pipeline.backbones.backbone import ExtractConfig
from patchsae.pipeline.backbones.models import open_clip as open_clip_kind
from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.open_clip_data import model_config
from patchsae.pipeline.core.stage import Runtime
from patchsae.storage.artifacts import Artifact
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.checkpoints import save_weights
from tests.support.nodes import run_all


def run_weights(store: Store, runtime: Runtime, config: OpenClipConfig) -> Artifact:
    return run_all(store, [Node(weights.STAGE, "clip", config, {})], runtime)["weights/clip"]


def test_unknown_names_have_near_matches() -> None:
    with pytest.raises(
        ValidationError, match=r"`ViT-B-61` is not known to open_clip; did you mean .*`ViT-B-16`"
    ):
        OpenClipConfig(model="ViT-B-61", pretrained="openai")
    with pytest.raises(
        ValidationError, match="`openia` is no pretrained tag of ViT-B-16; did you mean `openai`"
    ):
        OpenClipConfig(model="ViT-B-16", pretrained="openia")


@pytest.mark.parametrize("sources", [{}, {"pretrained": "openai", "checkpoint": "x"}])
def test_weights_come_from_one_source(sources: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="either `pretrained`"):
        OpenClipConfig(model="ViT-B-16", **sources)


def test_a_checkpoint_that_does_not_fit_is_one_sentence(
    store: Store, runtime: Runtime, tiny_model: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no such file"):
        run_weights(store, runtime, OpenClipConfig(model=tiny_model, checkpoint=str(tmp_path / "none.pt")))
    state = load_file(tiny_checkpoint)
    wrong = tmp_path / "wrong.safetensors"
    save_file({**state, "visual.proj": torch.zeros(5, 5)}, wrong)
    with pytest.raises(
        UserError,
        match=r"wrong\.safetensors: does not load as patchsae-tiny \(tensors of another shape.*visual.proj",
    ):
        run_weights(store, runtime, OpenClipConfig(model=tiny_model, checkpoint=str(wrong)))
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match=r"garbage\.safetensors: cannot be read as a state dict"):
        run_weights(store, runtime, OpenClipConfig(model=tiny_model, checkpoint=str(garbage)))
    evil = tmp_path / "evil.pt"
    torch.save({"model": Artifact}, evil)
    with pytest.raises(UserError, match=r"evil\.pt: cannot be read as a state dict"):
        run_weights(store, runtime, OpenClipConfig(model=tiny_model, checkpoint=str(evil)))
    assert not list(store.committed())


@pytest.mark.parametrize("block", [3, -4])
def test_hook_out_of_range(tiny_model: str, tiny_checkpoint: Path, block: int) -> None:
    config = OpenClipConfig(
        model=tiny_model, checkpoint=str(tiny_checkpoint), extract=ExtractConfig(hook_block=block)
    )
    with pytest.raises(
        UserError, match=f"extract.hook_block: {block} is out of range for 3 blocks; give -3 to -1"
    ):
        config.build({})


def test_only_open_clip_vits_can_be_cut(tmp_path: Path) -> None:
    path = tmp_path / "resnet.safetensors"
    save_weights(open_clip.create_model("RN50"), path)
    with pytest.raises(UserError, match="ModifiedResNet"):
        OpenClipConfig(model="RN50", checkpoint=str(path)).build({})


def test_identity_is_that_of_the_weights_not_of_the_file(
    store: Store, runtime: Runtime, tiny_model: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    before = run_weights(store, runtime, OpenClipConfig(model=tiny_model, checkpoint=str(tiny_checkpoint)))
    copy = tmp_path / "copy.pt"
    torch.save(load_file(tiny_checkpoint), copy)
    after = run_weights(store, runtime, OpenClipConfig(model=tiny_model, checkpoint=str(copy)))
    assert after.key != before.key
    assert after.identity == before.identity


def test_weights_that_changed_under_us_are_refused(
    store: Store, runtime: Runtime, tiny_model: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes())
    config = OpenClipConfig(model=tiny_model, checkpoint=str(path))
    artifact = run_weights(store, runtime, config)
    assert weights.load_backbone(config, {"weights": artifact}, "cpu").width == 32
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(UserError, match="digest"):
        weights.load_backbone(config, {"weights": artifact}, "cpu")


def test_weights_that_an_earlier_version_digested_are_still_these(
    store: Store, runtime: Runtime, tiny_model: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        open_clip_kind, "model_config", lambda name: {**model_config(name), "quick_gelu": True}
    )
    config = OpenClipConfig(model=tiny_model, checkpoint=str(tiny_checkpoint))
    now, earlier = weights.identities_of(config.build({}))
    assert now != earlier
    artifact = run_weights(store, runtime, config)
    assert artifact.identity == now
    assert weights.load_backbone(config, {"weights": artifact}, "cpu").width == 32
    monkeypatch.setattr(Artifact, "identity", earlier)
    assert weights.load_backbone(config, {"weights": artifact}, "cpu").width == 32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        # open_clip scales positions of another size to its own, and a contiguous copy of these has 256 GB.
        ({"visual.positional_embedding": torch.zeros(1).expand(2_000_000_000, 32)}, "claims the shape"),
        ({"visual.proj": torch.zeros(2, 2).to_sparse()}, "is no dense tensor of real numbers"),
        ({"visual.proj": 3}, "`visual.proj` is of type int, not a tensor"),
        ({5: torch.zeros(1)}, "holds no state dict"),
    ],
    ids=["expanded", "sparse", "number", "name"],
)
def test_a_torch_file_made_to_take_all_memory_is_refused(
    store: Store, runtime: Runtime, tiny_model: str, tiny_checkpoint: Path, tmp_path: Path,
    changed: dict[object, object], message: str,
) -> None:  # fmt: skip
    path = tmp_path / "hostile.pt"
    state = load_file(tiny_checkpoint)
    for content in ({**state, **changed}, {"state_dict": {**state, **changed}}):
        torch.save(content, path)
        with pytest.raises(UserError, match=rf"hostile\.pt: .*{message}"):
            run_weights(store, runtime, OpenClipConfig(model=tiny_model, checkpoint=str(path)))
    torch.save([1], path)
    with pytest.raises(UserError, match=r"hostile\.pt: holds no state dict"):
        run_weights(store, runtime, OpenClipConfig(model=tiny_model, checkpoint=str(path)))


def test_a_torch_file_is_read_as_a_safetensors_file_is(
    store: Store, runtime: Runtime, tiny_model: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    state = load_file(tiny_checkpoint)
    expected = run_weights(store, runtime, OpenClipConfig(model=tiny_model, checkpoint=str(tiny_checkpoint)))
    for name, is_archive in (("archive.pt", True), ("old.pt", False)):
        torch.save({"state_dict": state}, tmp_path / name, _use_new_zipfile_serialization=is_archive)
        config = OpenClipConfig(model=tiny_model, checkpoint=str(tmp_path / name))
        assert run_weights(store, runtime, config).identity == expected.identity
