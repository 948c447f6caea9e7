"""An SAE applied to the activations of a backbone that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import Experiment, parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.results.tables import Catalog
from patchsae.pipeline.saes.sae import load_sae
from patchsae.storage.activations import Activations
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store
from tests.support.sae_inputs import run as commit_run

EXPERIMENT = """
name: other
datasets: {{digits: {{kind: digits, n_images: 60}}}}
backbones:
  clip: {{kind: open_clip, model: patchsae-tiny, checkpoint: {base!r}}}
  tuned: {{kind: wise_ft, backbone: clip, checkpoint: {tuned!r}, alpha: 1}}
  shapes: {{kind: shapes_clip}}
saes:
  sae: {{kind: topk, k: 4, n_latents: 32, batch_size: 64, n_steps: 3, dataset: digits, backbone: clip}}
evaluations:
  of-clip: {{kind: statistics, sae: sae, tau: 0}}
  of-tuned: {{kind: statistics, sae: sae, tau: 0, backbone: tuned}}
  quality: {{kind: reconstruction, sae: sae, backbone: tuned}}
  clip-by-clip: {{kind: masking, statistics: of-clip, ks: [2], n_random: 1}}
  clip-by-tuned: {{kind: masking, statistics: of-tuned, ks: [2], n_random: 1}}
  tuned-by-clip: {{kind: masking, statistics: of-clip, ks: [2], n_random: 1, backbone: tuned}}
"""

ONLY_EXTRACT = """
name: wide
datasets: {digits: {kind: digits, n_images: 60}}
backbones: {shapes: {kind: shapes_clip}}
saes: {wide: {kind: topk, k: 4, n_latents: 32, batch_size: 64, n_steps: 1, dataset: digits, backbone: shapes}}
"""


@pytest.fixture
def text(tiny_checkpoint: Path, tmp_path: Path) -> str:
    state = load_file(tiny_checkpoint)
    tuned = tmp_path / "tuned.safetensors"
    generator = torch.Generator().manual_seed(1)
    save_file(
        {
            name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
            for name, tensor in state.items()
            if name.startswith("visual.")
        },
        tuned,
    )
    return EXPERIMENT.format(base=str(tiny_checkpoint), tuned=str(tuned))


def experiment(text: str) -> Experiment:
    return parse(text, "other")


def test_an_sae_is_applied_to_the_backbone_that_is_named(text: str, store: Store) -> None:
    done = run(work_on(store, experiment(text)), Runtime())
    sae = load_sae(done["train/sae"])
    for name in ("clip", "tuned"):
        x = Activations(done[f"extract/digits-{name}"])
        images = done["index/digits"].scan("images").filter(split="train").collect()["image"]
        values = torch.from_numpy(x.read(int(images[0]), int(images[-1]) + 1)).float().flatten(0, 1)
        counts = (sae.encode(values) > 0).sum(0)
        table = done[f"statistics/of-{name}"].scan("latents").collect()
        assert table["n_tokens_above"].to_list() == counts.tolist()
    assert done["statistics/of-clip"].scan("latents").collect()["n_tokens"].to_list() != counts.tolist()
    masking = Catalog(store).scan("masking").filter(pl.col("class").is_null()).collect()
    named = masking.group_by("evaluation").agg(pl.col("backbone").unique())
    assert {row["evaluation"]: row["backbone"] for row in named.iter_rows(named=True)} == {
        "clip-by-clip": ["clip"],
        "clip-by-tuned": ["clip"],
        "tuned-by-clip": ["tuned"],
    }
    # The classifier is that of the evaluation's backbone, the selection that of the statistics.
    for node, backbone, statistics in (
        ("clip-by-tuned", "clip", "of-tuned"),
        ("tuned-by-clip", "tuned", "of-clip"),
    ):
        inputs = done[f"masking/{node}"].manifest.inputs
        assert inputs["activations"] == done[f"extract/digits-{backbone}"].identity
        assert inputs["weights"] == done[f"weights/{backbone}"].identity
        assert inputs["statistics"] == done[f"statistics/{statistics}"].identity
    reconstruction = Catalog(store).scan("reconstruction").collect()
    assert reconstruction["backbone"].unique().to_list() == ["tuned"]


def test_the_sae_s_own_backbone_by_its_name_has_the_same_key(text: str, store: Store) -> None:
    named = text.replace("tau: 0}", "tau: 0, backbone: clip}").replace(
        "ks: [2]", "ks: [2], backbone: clip", 1
    )
    keys = [
        {address: planned.key for address, planned in work_on(store, experiment(one)).planned.items()}
        for one in (text, named)
    ]
    assert keys[0] == keys[1]


def test_another_width_is_refused(text: str, store: Store) -> None:
    sentence = "the SAE takes 32 channels and the activations of this backbone have 128; name a backbone"
    wide = text.replace("backbone: tuned}", "backbone: shapes}")
    planned = work_on(store, experiment(wide)).planned
    for address in ("statistics/of-tuned", "reconstruction/quality", "masking/tuned-by-clip"):
        assert planned[address].state == "blocked" and sentence in planned[address].why
    run(work_on(store, experiment(text)), Runtime())
    # The run refuses it by itself.
    node = next(node for node in experiment(wide).nodes() if node.address == "statistics/of-tuned")
    activations = run(work_on(store, parse(ONLY_EXTRACT, "shapes")), Runtime())["extract/digits-shapes"]
    inputs = {"sae": store.committed("train")[0], "images": store.committed("index")[0]}
    with pytest.raises(UserError, match=sentence):
        commit_run(store, node.stage, node.config, {**inputs, "activations": activations})
