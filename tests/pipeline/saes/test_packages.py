"""Round trips with the real packages: `uv run --group interchange pytest tests/pipeline/saes`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from patchsae.pipeline.saes import files as formats
from patchsae.storage.atomic import write_folder
from tests.support import our_saes, peer_saes
from tests.support.our_saes import KINDS, reconstruct

_MODULES = {"saelens": "sae_lens", "dictionary_learning": "dictionary_learning", "saev": "saev"}
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def require(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed; run this with `uv run --group interchange`")


@pytest.fixture(params=list(_MODULES))
def tool(request: pytest.FixtureRequest) -> Iterator[str]:
    require(_MODULES[request.param])
    with torch.no_grad():
        yield str(request.param)


def test_their_sae_is_the_same_function_here(tool: str, tmp_path: Path) -> None:
    x = peer_saes.tokens()
    peers = peer_saes.PEERS[tool]()
    assert peers
    for name, peer in peers.items():
        path = tmp_path / tool / name
        peer.save(path)
        assert formats.recognise(path) == tool
        torch.testing.assert_close(
            reconstruct(formats.load(path), x), peer.reconstruct(x), **TOLERANCE, msg=name
        )


def _sae_lens(folder: Path) -> Callable[[Tensor], Tensor]:
    from sae_lens import SAE

    return SAE.load_from_disk(folder)


def _dictionary_learning(folder: Path) -> Callable[[Tensor], Tensor]:
    from dictionary_learning.utils import load_dictionary

    return load_dictionary(str(folder), "cpu")[0]


def _saev(folder: Path) -> Callable[[Tensor], Tensor]:
    import saev.nn

    sae = saev.nn.load(str(folder / "sae.pt"))
    return lambda x: sae(x)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("format_name", "module", "load"),
    [
        ("saelens", "sae_lens", _sae_lens),
        ("dictionary_learning", "dictionary_learning", _dictionary_learning),
        ("saev-0.1", "saev", _saev),
    ],
)
def test_our_sae_is_the_same_function_there(
    format_name: str,
    module: str,
    load: Callable[[Path], Callable[[Tensor], Tensor]],
    kind: str,
    tmp_path: Path,
) -> None:
    require(module)
    if format_name == "saev-0.1" and kind != "relu":
        pytest.skip("saev 0.1.0 has ReLU alone")
    sae, x = our_saes.make(kind), peer_saes.tokens()
    write_folder(tmp_path / "sae", formats.save_files(sae, format_name))
    with torch.no_grad():
        theirs = load(tmp_path / "sae")(x)
    torch.testing.assert_close(theirs, reconstruct(sae, x), **TOLERANCE)


def test_the_latents_there_are_ours(tmp_path: Path) -> None:
    require("sae_lens")
    from sae_lens import SAE

    for kind in KINDS:
        sae, x = our_saes.make(kind), peer_saes.tokens()
        write_folder(tmp_path / kind, formats.save_files(sae, "saelens"))
        with torch.no_grad():
            theirs = SAE.load_from_disk(tmp_path / kind).encode(x)
        torch.testing.assert_close(theirs, sae.encode(x), **TOLERANCE)
