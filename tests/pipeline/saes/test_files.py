"""Files of the real packages (`tests/data/interchange`, written by `peer_saes.py`), and files that are wrong."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from patchsae.pipeline.saes import files as formats
from patchsae.pipeline.saes.sae import Sae
from patchsae.storage.atomic import write_folder
from patchsae.storage.errors import UserError
from tests.support import our_saes, peer_saes
from tests.support.our_saes import KINDS, reconstruct
from tests.support.peer_saes import FILES, N_LATENTS, WIDTH, K

SAVED = sorted(path.with_suffix("") for path in FILES.glob("*/*.expected"))


@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_saved_sae_reconstructs_as_where_it_was_saved(path: Path) -> None:
    expected = load_file(path.with_name(f"{path.name}.expected"))["x_hat"]
    sae = formats.load(path)
    assert formats.recognise(path) == path.parent.name
    torch.testing.assert_close(reconstruct(sae, peer_saes.tokens()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format_name", formats.WRITABLE)
def test_what_is_written_is_read_as_the_same(format_name: str, kind: str, tmp_path: Path) -> None:
    sae, x = our_saes.make(kind), peer_saes.tokens()
    if (format_name, kind) == ("saev", "jump_relu") or (format_name == "saev-0.1" and kind != "relu"):
        with pytest.raises(UserError, match="--format saev"):
            formats.save_files(sae, format_name)
        return
    folder = tmp_path / "sae"
    write_folder(folder, formats.save_files(sae, format_name))
    again = formats.load(folder)
    assert again.activation == sae.activation
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reconstruct(again, x), reconstruct(sae, x), rtol=1e-5, atol=1e-5)


# saev's present code is on no registry: its checkpoints as its source has them.


def saev_file(path: Path, activation: dict[str, Any], schema: int = 5, **tensors: Tensor) -> Sae:
    """Writes a checkpoint of random weights and returns these, as ours, without a change."""
    sae = our_saes.make("relu")
    state = {**sae.tensors(), **tensors}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    cfg = {"d_model": WIDTH, "d_sae": N_LATENTS, "activation": activation, "reinit_blend": 0.8}
    header = {"schema": schema, "cfg": cfg, "commit": "unknown", "lib": "0.3.0"}
    path.write_bytes(json.dumps(header).encode() + b"\n" + buffer.getvalue())
    return sae


@pytest.mark.parametrize("name", ["Relu", "TopK", "BatchTopK"])
def test_a_present_saev_checkpoint_encodes_without_taking_b_dec_off(name: str, tmp_path: Path) -> None:
    theta = torch.tensor(0.4)
    extra = {"activation.threshold": theta} if name == "BatchTopK" else {}
    params = {} if name == "Relu" else {"top_k": K}
    sae = saev_file(tmp_path / "sae.pt", {"cls": name, "params": params}, **extra)
    x = peer_saes.tokens()
    h = x @ sae.W_enc + sae.b_enc
    if name == "Relu":
        f = h.relu()
    elif name == "BatchTopK":
        f = torch.where(h > theta, h, 0.0)
    else:
        f = torch.zeros_like(h).scatter(1, (top := h.topk(K)).indices, top.values.relu())
    expected = f @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(
        reconstruct(formats.load(tmp_path / "sae.pt"), x), expected, rtol=1e-5, atol=1e-5
    )


def test_what_we_write_of_saev_is_its_header_and_its_state(tmp_path: Path) -> None:
    content = formats.save_files(our_saes.make("batch_top_k"), "saev")["sae.pt"]
    line, _, rest = content.partition(b"\n")
    header = json.loads(line)
    assert header["schema"] == 5
    assert header["cfg"]["activation"] == {"cls": "BatchTopK", "params": {}}
    state = torch.load(io.BytesIO(rest), weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "W_enc": (WIDTH, N_LATENTS),
        "b_enc": (N_LATENTS,),
        "W_dec": (N_LATENTS, WIDTH),
        "b_dec": (WIDTH,),
        "activation.threshold": (),
    }


# What is refused, in one sentence that names the file.


@pytest.fixture
def saelens(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FILES / "saelens" / "jumprelu", tmp_path / "theirs"))


def refusal(path: Path, format_name: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        formats.load(path, format_name)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith((".", "?", ")."))
    return sentence


def edit(folder: Path, **changes: Tensor | None) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "sae_weights.safetensors")


def configure(folder: Path, **changes: object) -> None:
    file = folder / ("cfg.json" if (folder / "cfg.json").exists() else "config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_missing_tensor(saelens: Path) -> None:
    edit(saelens, threshold=None)
    assert "sae_weights.safetensors: has no tensor `threshold`" in refusal(saelens)


def test_an_unexpected_tensor(saelens: Path) -> None:
    edit(saelens, b_gate=torch.zeros(N_LATENTS))
    assert "has a tensor `b_gate`, which this format does not know" in refusal(saelens)


@pytest.mark.parametrize("shape", [(N_LATENTS, WIDTH), (N_LATENTS,), (WIDTH, N_LATENTS + 1)])
def test_a_wrong_shape(saelens: Path, shape: tuple[int, ...]) -> None:
    edit(saelens, W_enc=torch.zeros(shape))
    assert "it has the axes" in refusal(saelens)


def test_values_that_are_not_finite(saelens: Path) -> None:
    edit(saelens, b_dec=torch.full((WIDTH,), torch.nan))
    assert "`b_dec` holds values that are not finite" in refusal(saelens)


def test_a_scale_of_fine_tuning_other_than_1(saelens: Path) -> None:
    edit(saelens, scaling_factor=torch.ones(N_LATENTS))
    before = formats.load(FILES / "saelens" / "jumprelu")
    assert torch.equal(formats.load(saelens).W_dec, before.W_dec)
    edit(saelens, scaling_factor=torch.full((N_LATENTS,), 2.0))
    assert "scaling_factor that is not 1" in refusal(saelens)


def test_an_unknown_architecture(saelens: Path) -> None:
    configure(saelens, architecture="jumprelo")
    assert "`jumprelo` cannot be read; did you mean `jumprelu`?" in refusal(saelens)


@pytest.mark.parametrize("setting", ["layer_norm", "expected_average_only_in", True])
def test_an_input_that_is_normalised(saelens: Path, setting: object) -> None:
    configure(saelens, normalize_activations=setting)
    assert f"normalize_activations is {setting!r}" in refusal(saelens)


def test_a_k_that_is_too_large_or_broken(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FILES / "saelens" / "topk", tmp_path / "topk"))
    configure(folder, k=N_LATENTS + 1)
    assert f"k is {N_LATENTS + 1}" in refusal(folder)
    configure(folder, k=2.5)
    assert "`k` is 2.5; only a whole number" in refusal(folder)
    configure(folder, k=None)
    assert "`k` is None" in refusal(folder)


def test_settings_of_sae_lens_before_version_6(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FILES / "saelens" / "topk", tmp_path / "topk"))
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False}
    (folder / "cfg.json").write_text(json.dumps(old))
    assert formats.load(folder).k == K


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_file(saelens: Path, name: str) -> None:
    (saelens / name).unlink()
    sentence = refusal(saelens, "saelens")
    assert name in sentence and "cannot be read" in sentence


def test_broken_files(saelens: Path) -> None:
    (saelens / "sae_weights.safetensors").write_bytes(b"no weights")
    assert "not a readable safetensors file" in refusal(saelens)
    (saelens / "cfg.json").write_text("{")
    assert "not readable as JSON" in refusal(saelens)
    (saelens / "cfg.json").write_text("[]")
    assert "holds no mapping" in refusal(saelens)


def test_a_dictionary_of_another_class(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FILES / "dictionary_learning" / "AutoEncoder", tmp_path / "theirs"))
    configure(folder, trainer={"dict_class": "AutoEncoderTopK"})
    assert "ae.pt: has no tensor `b_dec`" in refusal(folder)
    configure(folder, trainer={"dict_class": "IdentityDict"})
    assert "`IdentityDict` cannot be read" in refusal(folder)
    configure(folder, trainer=None)
    assert "no trainer.dict_class" in refusal(folder)
    (folder / "ae.pt").write_bytes(b"nothing")
    configure(folder, trainer={"dict_class": "AutoEncoder"})
    assert "nothing in it was executed" in refusal(folder)


def test_a_saev_checkpoint_of_a_future_or_broken_header(tmp_path: Path) -> None:
    path = tmp_path / "sae.pt"
    saev_file(path, {"cls": "Relu", "params": {}}, schema=6)
    assert "has the schema 6" in refusal(path)
    saev_file(path, {"cls": "Softmax", "params": {}})
    assert "`Softmax` cannot be read" in refusal(path)
    saev_file(path, {"cls": "TopK", "params": {"top_k": K}}, **{"activation.threshold": torch.tensor(0.1)})
    assert "has a tensor `activation.threshold`" in refusal(path)
    path.write_bytes(b"{not json\n")
    assert "does not begin with a line of settings" in refusal(path)
    path.write_bytes(b'{"schema": 5}\n')
    assert "nothing in it was executed" in refusal(path)


def test_batch_top_k_of_saev_has_a_threshold_from_schema_5_on(tmp_path: Path) -> None:
    path = tmp_path / "sae.pt"
    saev_file(path, {"cls": "BatchTopK", "params": {"top_k": K}})
    assert "has no tensor `activation.threshold`" in refusal(path)
    saev_file(path, {"cls": "BatchTopK", "params": {"top_k": K}}, schema=2)
    assert formats.load(path).k == K


def test_our_own_files_are_checked_too(tmp_path: Path) -> None:
    save_file({**our_saes.make("relu").tensors(), "W_enc": torch.zeros(3)}, tmp_path / "sae.safetensors")
    assert "`W_enc` is (3,); it has the axes d channels x S latents" in refusal(tmp_path)


def test_nothing_at_the_path(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no SAE in a format that can be read" in refusal(tmp_path / "empty")
    (tmp_path / "text").write_text("hello")
    assert "holds no SAE" in refusal(tmp_path / "text")
    assert "`saelense` cannot be read; did you mean `saelens`" in refusal(tmp_path, "saelense")


def test_a_format_that_cannot_be_written() -> None:
    with pytest.raises(UserError, match="--format reference: no such format"):
        formats.save_files(our_saes.make("relu"), "reference")


def test_saev_0_1_needs_a_multiple_of_the_width() -> None:
    sae = Sae(torch.zeros(4, 6), torch.zeros(6), torch.zeros(6, 4), torch.zeros(4))
    with pytest.raises(UserError, match="multiple of the width 4"):
        formats.save_files(sae, "saev-0.1")


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    files = formats.save_files(our_saes.make("relu"), "saelens")
    folder = tmp_path / "sae"
    folder.mkdir()
    (folder / "cfg.json").write_text("mine")
    (folder / "notes").write_text("mine")
    with pytest.raises(UserError, match="is already there"):
        write_folder(folder, files)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"cfg.json": "mine", "notes": "mine"}
    write_folder(folder, files, replace=True)
    assert (folder / "cfg.json").read_bytes() == files["cfg.json"]
    assert (folder / "notes").read_text() == "mine"
    with pytest.raises(UserError, match="is a file"):
        write_folder(folder / "notes", files, replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sae"]


# What is made to take all memory, or to end in a traceback.


def state_file(path: Path, format_name: str, state: dict[str, Any]) -> Path:
    """A file of a format that torch reads, with this state dict; returns the path to load."""
    if format_name == "saev":
        saev_file(path / "sae.pt", {"cls": "Relu", "params": {}}, **state)
        return path / "sae.pt"
    whole = {**our_saes.make("relu").tensors(), **state}
    if format_name == "reference":
        torch.save({"cfg": {}, "state_dict": whole}, path / "reference.pt")
        return path / "reference.pt"
    renamed = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight", "b_dec": "bias"}
    (path / "config.json").write_text('{"trainer": {"dict_class": "AutoEncoder"}}')
    torch.save({renamed[name]: tensor for name, tensor in whole.items()}, path / "ae.pt")
    return path


TORCH_FORMATS = ("saev", "reference", "dictionary_learning")
NOT_DENSE = {
    "sparse": torch.zeros(3, 3).to_sparse(),
    "meta": torch.empty(3, 3, device="meta"),
    "complex": torch.zeros(3, 3, dtype=torch.complex64),
}


@pytest.mark.parametrize("format_name", TORCH_FORMATS)
def test_a_tensor_that_claims_more_than_it_holds(
    format_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 256 GB once it is converted, in a file of 1 kB.
    path = state_file(tmp_path, format_name, {"W_enc": torch.zeros(1).expand(64_000, 1_000_000)})
    monkeypatch.setattr(Tensor, "float", lambda tensor: pytest.fail("converted it"))
    assert "claims the shape (64000, 1000000) and holds 4 bytes; save a contiguous copy" in refusal(path)


@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("format_name", TORCH_FORMATS)
def test_a_tensor_that_is_not_dense(format_name: str, kind: str, tmp_path: Path) -> None:
    path = state_file(tmp_path, format_name, {"W_enc": NOT_DENSE[kind]})
    assert "is no dense tensor of real numbers" in refusal(path)


def rewritten(archive: bytes, compression: int, again: int = 0) -> bytes:
    """A zip archive with its entries written by `compression`, and the largest one `again` times more."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry), compression)
        for number in range(again):
            # A second entry in the list of contents, and no second copy of its bytes.
            copy = zipfile.ZipInfo(f"copy {number}")
            largest = max(old.infolist(), key=lambda entry: entry.file_size).filename
            for name in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(copy, name, getattr(new.getinfo(largest), name))
            new.filelist.append(copy)
    return buffer.getvalue()


@pytest.mark.parametrize("format_name", TORCH_FORMATS)
@pytest.mark.parametrize(("compression", "again"), [(zipfile.ZIP_DEFLATED, 0), (zipfile.ZIP_STORED, 9)])
def test_an_archive_that_unpacks_to_more_than_it_has(
    format_name: str, compression: int, again: int, tmp_path: Path
) -> None:
    path = state_file(tmp_path, format_name, {"W_enc": torch.zeros(300, 300)})
    file = path if path.is_file() else path / "ae.pt"
    header, start, archive = file.read_bytes().partition(b"PK\x03\x04")
    file.write_bytes(header + rewritten(start + archive, compression, again))
    assert "while torch.save compresses nothing" in refusal(path)


NESTED = b'{"a":' * 200_000


def test_json_that_is_nested_too_deeply(saelens: Path, tmp_path: Path) -> None:
    (saelens / "cfg.json").write_bytes(NESTED)
    assert "cfg.json: not readable as JSON (it is nested too deeply)" in refusal(saelens)
    (tmp_path / "sae.pt").write_bytes(NESTED + b"\n")
    assert "does not begin with a line of settings" in refusal(tmp_path / "sae.pt")


def test_settings_of_other_types_than_expected(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FILES / "saelens" / "topk", tmp_path / "topk"))
    configure(folder, k=10**30)
    assert "`k` has more than 9 digits" in refusal(folder)
    (folder / "cfg.json").write_text('{"activation_fn_str": "topk", "activation_fn_kwargs": [4]}')
    assert "`k` is None" in refusal(folder)


@pytest.mark.parametrize("format_name", [None, "saev", "reference"])
def test_a_pipe_is_not_waited_for(format_name: str | None, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sae.pt")
    assert "is no regular file" in refusal(tmp_path / "sae.pt", format_name)
