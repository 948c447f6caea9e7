"""SAEs in and out of a store: the commands, and an SAE of kind `imported` in an experiment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from patchsae.pipeline.core.graph import Node
from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.evaluations import visaebench
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.experiment.plan import Planned
from patchsae.pipeline.images.tables import labels_of, split_range
from patchsae.pipeline.saes import files as formats
from patchsae.pipeline.saes.sae import Sae, load_sae
from patchsae.storage.activations import Activations, to_float32
from patchsae.storage.artifacts import Artifact
from patchsae.storage.atomic import write_folder
from patchsae.storage.errors import UserError
from patchsae.storage.keys import artifact_key
from patchsae.storage.records import ExperimentRecord, RecordedNode
from patchsae.storage.store import Store
from tests.support.command import patchsae, sentence
from tests.support.nodes import plan, run_node
from tests.support.our_saes import reconstruct

WIDTH = 32
"""Of the small store's backbone."""


@pytest.fixture
def trained(small_store: Store) -> Artifact:
    return small_store.committed("train")[0]


@pytest.fixture
def full_store(small_store: Store, tmp_path: Path) -> Store:
    """A copy of the small store that remembers no run."""
    store = Store(shutil.copytree(small_store.root, tmp_path / "store"))
    for name in store.records.all():
        store.records.forget(name)
    return store


def record(store: Store, experiment: str, key: str) -> None:
    """Notes which SAE an experiment calls `train/relu`."""
    store.records.write(experiment, ExperimentRecord({"train/relu": RecordedNode("train", key)}), newest=True)


# export and import


def test_export_by_key_and_by_address(full_store: Store, trained: Artifact, tmp_path: Path) -> None:
    record(full_store, "small", trained.key)
    for number, word in enumerate([trained.key[:6], trained.key, "train/relu", "relu"]):
        folder = tmp_path / f"{number}"
        result = patchsae("export", word, "--format", "saelens", "--to", folder, "--store", full_store.root)
        assert result.exit_code == 0, result.output
        assert result.stdout.split() == [str(folder / "cfg.json"), str(folder / "sae_weights.safetensors")]
        ours, theirs = load_sae(trained), formats.load(folder)
        assert all(torch.equal(ours.tensors()[name], theirs.tensors()[name]) for name in ours.tensors())


def test_export_says_what_is_wrong_and_writes_nothing(
    full_store: Store, trained: Artifact, tmp_path: Path
) -> None:
    folder, key = tmp_path / "sae", trained.key[:8]

    def refuse(word: str, format_name: str) -> str:
        return sentence(
            patchsae("export", word, "--format", format_name, "--to", folder, "--store", full_store.root)
        )

    assert "no such format; did you mean `saelens`" in refuse(key, "sae_lens")
    assert f"nothing in {full_store.root} has this address or key" in refuse("train/nothing", "saelens")
    record(full_store, "a", "0" * 64)
    assert "is not in" in refuse("train/relu", "saelens")
    assert not folder.exists()
    folder.mkdir()
    assert "is already there" in refuse(key, "saelens")
    assert list(folder.iterdir()) == []
    forced = ("export", key, "--format", "saelens", "--to", folder, "--store", full_store.root, "--force")
    assert patchsae(*forced).exit_code == 0
    assert patchsae(*forced).exit_code == 0


def test_an_address_of_several_saes_is_refused(full_store: Store, trained: Artifact, tmp_path: Path) -> None:
    key = artifact_key("train", 3, {"other": 1}, {})
    builder = full_store.begin(full_store.at("train", key))
    builder.write("sae.safetensors", (trained.path / "sae.safetensors").read_bytes())
    other = full_store.commit(builder, 3, {"other": 1}, {}, {}, {})
    for name, artifact in (("one", trained), ("two", other)):
        record(full_store, name, artifact.key)
    to = ("--format", "saelens", "--to", tmp_path / "sae", "--store", full_store.root)
    found = sentence(patchsae("export", "train/relu", *to))
    assert trained.key[:16] in found and other.key[:16] in found and "(two: train/relu)" in found


def test_import_converts_to_our_files(trained: Artifact, tmp_path: Path) -> None:
    sae = load_sae(trained)
    write_folder(tmp_path / "theirs", formats.save_files(sae, "dictionary_learning"))
    result = patchsae("import", tmp_path / "theirs", "--to", tmp_path / "ours")
    assert result.exit_code == 0, result.output
    assert "512 latents of 32 channels, relu" in result.stdout
    x = torch.randn(20, WIDTH)
    torch.testing.assert_close(reconstruct(formats.load(tmp_path / "ours"), x), reconstruct(sae, x))
    assert "is already there" in sentence(patchsae("import", tmp_path / "theirs", "--to", tmp_path / "ours"))
    assert "no such file" in sentence(patchsae("import", tmp_path / "gone", "--to", tmp_path / "new"))


# kind: imported

EXPERIMENT = """
name: theirs
datasets:
  digits: {{kind: digits}}
backbones:
  tiny: {{kind: open_clip, model: patchsae-tiny, checkpoint: {checkpoint!r}}}
saes:
  relu: {{kind: relu_l1, dataset: digits, backbone: tiny}}
  theirs: {{kind: imported, dataset: digits, backbone: tiny, path: {path!r}}}
evaluations:
  statistics: {{kind: statistics, sae: theirs, tau: 0.01}}
"""


def peer_sae(width: int = WIDTH, seed: int = 0) -> Sae:
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(48, width, generator=generator))
    return Sae(W_dec.T.contiguous(), torch.zeros(48), W_dec, torch.zeros(width), torch.full((48,), 0.5))


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    folder = tmp_path / "theirs"
    write_folder(folder, formats.save_files(peer_sae(), "saelens"))
    return folder


def planned(store: Store, checkpoint: Path, path: Path) -> tuple[list[Node], dict[str, Planned]]:
    nodes = parse(EXPERIMENT.format(checkpoint=str(checkpoint), path=str(path)), "theirs.yaml").nodes()
    return nodes, plan(store, nodes)


def test_an_imported_sae_takes_part_like_a_trained_one(
    full_store: Store, tiny_checkpoint: Path, theirs: Path
) -> None:
    nodes, found = planned(full_store, tiny_checkpoint, theirs)
    assert [node.address for node in nodes if node.stage.name in ("train", "import")] == [
        "train/relu",
        "import/theirs",
    ]
    artifact = run_node(full_store, found["import/theirs"], found, Runtime())
    assert artifact.manifest.summary == {"n_latents": 48, "width": WIDTH, "activation": "jump_relu"}
    x = torch.randn(30, WIDTH)
    assert torch.equal(load_sae(artifact).encode(x), peer_sae().encode(x))
    _, found = planned(full_store, tiny_checkpoint, theirs)
    assert found["import/theirs"].state == "cached"
    statistics = run_node(full_store, found["statistics/statistics"], found, Runtime())
    assert statistics.scan("latents").select(pl.len()).collect().item() == 48


def test_it_is_identified_by_its_files_wherever_they_lie(
    full_store: Store, tiny_checkpoint: Path, theirs: Path, tmp_path: Path
) -> None:
    _, before = planned(full_store, tiny_checkpoint, theirs)
    moved = theirs.rename(tmp_path / "elsewhere")
    _, after = planned(full_store, tiny_checkpoint, moved)
    assert before["import/theirs"].key == after["import/theirs"].key
    write_folder(moved, formats.save_files(peer_sae(seed=1), "saelens"), replace=True)
    _, changed = planned(full_store, tiny_checkpoint, moved)
    assert before["import/theirs"].key != changed["import/theirs"].key


def test_a_peer_s_files_that_are_wrong_block_it_with_a_sentence(
    full_store: Store, tiny_checkpoint: Path, theirs: Path, tmp_path: Path
) -> None:
    _, found = planned(full_store, tiny_checkpoint, tmp_path / "gone")
    assert found["import/theirs"].state == "blocked"
    assert "no such file or folder" in found["import/theirs"].why
    assert found["statistics/statistics"].state == "blocked"
    (theirs / "cfg.json").write_text(json.dumps({"architecture": "temporal"}))
    _, found = planned(full_store, tiny_checkpoint, theirs)
    with pytest.raises(UserError, match="the architecture `temporal` cannot be read"):
        run_node(full_store, found["import/theirs"], found, Runtime())
    assert full_store.committed("import") == []


def test_a_path_that_is_wrong_is_found_before_anything_is_run(
    store: Store, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    _, found = planned(store, tiny_checkpoint, tmp_path / "gone")
    assert found["extract/digits-tiny"].state == "run"
    assert found["import/theirs"].state == "blocked"


def test_an_sae_of_another_width_is_refused(full_store: Store, tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "wide", formats.save_files(peer_sae(48), "saelens"))
    _, found = planned(full_store, tiny_checkpoint, tmp_path / "wide")
    with pytest.raises(UserError, match="takes 48 channels and the backbone's activations have 32"):
        run_node(full_store, found["import/theirs"], found, Runtime())


def test_set_reaches_imported_saes_under_their_own_stage(tiny_checkpoint: Path, theirs: Path) -> None:
    text = EXPERIMENT.format(checkpoint=str(tiny_checkpoint), path="nowhere")
    experiment = parse(text, "theirs.yaml", ["train.lr=0.5", f"import/theirs.path={theirs}"])
    assert experiment.saes["relu"].lr == 0.5  # type: ignore[attr-defined]
    assert experiment.saes["theirs"].path == str(theirs)  # type: ignore[attr-defined]


# ViSAEBench


def test_the_adapter_is_our_sae_in_normalised_units() -> None:
    sae, mean, std = peer_sae(), torch.randn(WIDTH), 2.5
    bench = visaebench.VisaeBenchSae(sae, mean, std)
    x = torch.randn(4, 3, WIDTH)
    normalised = (x - mean) / std
    z = bench.encode(normalised)
    torch.testing.assert_close(z, sae.encode(x.flatten(0, 1)).unflatten(0, (4, 3)), rtol=1e-4, atol=1e-5)
    expected = (reconstruct(sae, x.flatten(0, 1)).unflatten(0, (4, 3)) - mean) / std
    torch.testing.assert_close(bench.decode(z), expected, rtol=1e-4, atol=1e-5)


def test_the_files_hold_the_patches_of_the_split(small_store: Store, tmp_path: Path) -> None:
    activations = Activations(small_store.committed("extract")[0])
    paths = visaebench.write_patches(activations, range(5, 25), tmp_path)
    [found] = [torch.load(path, weights_only=True) for path in paths]
    assert found.shape == (20, 16, WIDTH) and found.dtype == torch.float16
    assert np.array_equal(found.float().numpy(), to_float32(activations.read(5, 25), "float16")[:, 1:])


def test_visaebench_refuses_what_it_cannot_do(
    small_store: Store, trained: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ("--store", small_store.root)
    assert "--metric cross_domain" in sentence(
        patchsae("visaebench", trained.key, "--metric", "cross_domain", *store)
    )
    assert "knows ImageNet's 1,000 classes and these images have 10" in sentence(
        patchsae("visaebench", trained.key, "--metric", "absorption", *store)
    )
    assert "split `nothing`" in sentence(patchsae("visaebench", trained.key, "--split", "nothing", *store))
    monkeypatch.setitem(__import__("sys").modules, "visaebench", None)
    assert "ViSAEBench is not installed" in sentence(patchsae("visaebench", trained.key, *store))


@pytest.mark.parametrize("metric", ["fvu", "localization"])
@pytest.mark.parametrize("as_json", [False, True])
def test_whose_fvu_it_is_is_said_beside_it(
    metric: str, as_json: bool, small_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"metric": metric, "dimension": "reconstruction", "value": 0.25, "better": "lower"}
    monkeypatch.setattr("patchsae.flows.cli.sae_files.score", lambda *_: [row])
    result = patchsae("visaebench", "relu", "--store", small_store.root, *(["--json"] if as_json else []))
    assert result.exit_code == 0, result.output
    assert "0.25" in result.stdout
    assert (visaebench.FVU_NOTE in (result.stderr if as_json else result.stdout)) == (metric == "fvu")
    if as_json:
        assert json.loads(result.stdout) == [row]


def test_their_fvu_of_a_shifted_reconstruction() -> None:
    """What `FVU_NOTE` says of it."""
    fvu = pytest.importorskip(
        "visaebench.metrics.reconstruction.fvu", reason="run with `--group interchange`"
    )

    class Shifted:
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return z + 0.5

    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
    x -= x.mean(dim=0)
    n = len(x)
    squares, mean_error = WIDTH * 0.5**2, WIDTH * 0.5
    expected = (squares - mean_error**2) / (x.square().sum().item() / n)
    found = fvu.FVU().compute(Shifted(), x, device="cpu").value
    assert found == pytest.approx(expected, rel=1e-3)
    assert found < 0


def test_visaebench_scores_our_sae(small_store: Store, trained: Artifact) -> None:
    pytest.importorskip("visaebench", reason="run this with `uv run --group interchange`")
    result = patchsae(
        "visaebench",
        trained.key,
        "--store",
        small_store.root,
        "--json",
        "--metric",
        "fvu",
        "--metric",
        "sparse_probing",
    )
    assert result.exit_code == 0, result.output
    rows = {row["metric"]: row for row in json.loads(result.stdout[result.stdout.index("[\n") :])}
    assert list(rows) == ["fvu", "sparse_probing"] and rows["fvu"]["better"] == "lower"
    assert 0 <= rows["sparse_probing"]["value"] <= 1
    # Its FVU: less the square of the mean error summed over channels (`FVU_NOTE`).
    images = small_store.committed("index")[0]
    rows_of_split = split_range(images, "test")
    assert len(labels_of(images)) >= len(rows_of_split)
    values = Activations(small_store.committed("extract")[0]).read(rows_of_split.start, rows_of_split.stop)
    x = torch.from_numpy(values[:, 1:].astype(np.float32)).flatten(0, 1)
    residual = x - reconstruct(load_sae(trained), x)
    scale = (x - x.mean(dim=0)).square().mean().sqrt()
    residual, centred = residual / scale, (x - x.mean(dim=0)) / scale
    n = len(x)
    fvu = (residual.square().sum() / n - (residual.sum() / n) ** 2) / (centred.square().sum() / n)
    assert rows["fvu"]["value"] == pytest.approx(fvu.item(), rel=1e-3)
