"""The reference's checkpoints are read without running anything that is in them."""

from __future__ import annotations

import dataclasses
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from patchsae.pipeline.saes import files as formats
from patchsae.storage.errors import UserError
from tests.support import our_saes

RAN = "ran"


@dataclasses.dataclass
class ViTSAERunnerConfig:
    """As the reference's: settings, a device, a dtype, and what a dataclass computes."""

    module_name: str = "resid"
    block_layer: int = -2
    d_in: int = 6
    dtype: torch.dtype = torch.float32
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))
    paths: tuple[Path, ...] = (Path("checkpoints"),)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The dataclass in a module that is there for writing and gone for reading."""
    module = types.ModuleType("sae_training.config")
    monkeypatch.setattr(ViTSAERunnerConfig, "__module__", module.__name__)
    module.ViTSAERunnerConfig = ViTSAERunnerConfig  # type: ignore[attr-defined]
    sys.modules["sae_training"] = types.ModuleType("sae_training")
    sys.modules[module.__name__] = module
    yield ViTSAERunnerConfig
    sys.modules.pop("sae_training", None)
    sys.modules.pop(module.__name__, None)


def forget() -> None:
    for name in ("sae_training", "sae_training.config"):
        sys.modules.pop(name, None)


def test_the_weights_are_read_and_the_class_is_not_needed(foreign: Any, tmp_path: Path) -> None:
    sae = our_saes.make("relu")
    path = tmp_path / "final_sparse_autoencoder.pt"
    torch.save({"cfg": foreign(), "state_dict": sae.tensors()}, path)
    forget()
    assert formats.recognise(path) == "reference"
    again = formats.load(path)
    assert again.activation == "relu"
    for name, tensor in sae.tensors().items():
        assert torch.equal(getattr(again, name), tensor)
    assert "sae_training.config" not in sys.modules


class Malicious:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def touch(path: str) -> None:
    Path(path).touch()


@pytest.mark.parametrize("function", [exec, eval, touch, "system"])
def test_a_pickle_that_calls_something_does_not_get_to(function: Any, tmp_path: Path) -> None:
    import os

    marker = tmp_path / RAN
    call = {"system": os.system}.get(function, function) if isinstance(function, str) else function
    argument = (
        str(marker)
        if call is touch
        else f"touch {marker}"
        if call is os.system
        else f"open({str(marker)!r}, 'w')"
    )
    path = tmp_path / "sae.pt"
    torch.save({"cfg": Malicious(call, argument), "state_dict": our_saes.make("relu").tensors()}, path)
    # The same file does run what it names where pickles are trusted.
    torch.load(path, weights_only=False)
    assert marker.exists()
    marker.unlink()
    try:
        formats.load(path)
    except UserError as error:
        assert "nothing in it was executed" in str(error)
    assert not marker.exists()


def test_a_pickle_hidden_in_the_weights_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / RAN
    path = tmp_path / "sae.pt"
    state = {**our_saes.make("relu").tensors(), "W_enc": Malicious(touch, str(marker))}
    torch.save({"cfg": {}, "state_dict": state}, path)
    with pytest.raises(UserError, match="`W_enc` is no tensor"):
        formats.load(path)
    assert not marker.exists()


def test_other_formats_do_not_run_pickles_either(tmp_path: Path) -> None:
    marker = tmp_path / RAN
    folder = tmp_path / "dictionary"
    folder.mkdir()
    (folder / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    torch.save({"bias": Malicious(touch, str(marker))}, folder / "ae.pt")
    with pytest.raises(UserError, match="nothing in it was executed"):
        formats.load(folder)
    assert not marker.exists()


@pytest.mark.parametrize("content", [{"cfg": 1}, [1, 2], {"state_dict": 3}])
def test_a_file_without_weights_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "sae.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match="has no state_dict"):
        formats.load(path)


def test_a_decoder_bias_of_the_reference_s_mean_initialisation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sae.pt"
    tensors = {**our_saes.make("relu").tensors(), "b_dec": torch.zeros(17, 6)}
    torch.save({"cfg": {}, "state_dict": tensors}, path)
    with pytest.raises(UserError, match="`b_dec` is \\(17, 6\\); it has the axes d channels"):
        formats.load(path)


def test_a_zip_that_is_no_checkpoint_and_a_file_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "sae.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(UserError, match="nothing in it was executed"):
        formats.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        formats.load(tmp_path / "gone.pt", "reference")
