"""A backbone made from another one: its weights lie between, its key depends on both, and faults are sentences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from patchsae.pipeline.core.stage import Runtime
from patchsae.pipeline.experiment.experiment import Experiment, parse
from patchsae.pipeline.experiment.request import work_on
from patchsae.pipeline.experiment.run import run
from patchsae.pipeline.saes.sae import load_sae
from patchsae.storage.errors import UserError
from patchsae.storage.store import Store

EXPERIMENT = """
name: wise
datasets: {{digits: {{kind: digits, n_images: 40}}}}
backbones:
  clip: {{kind: open_clip, model: patchsae-tiny, checkpoint: {base!r}}}
  tuned: {{kind: wise_ft, backbone: clip, checkpoint: {tuned!r}, alpha: {alpha}}}
  twice: {{kind: wise_ft, backbone: tuned, checkpoint: {tuned!r}, alpha: 0.5}}
saes:
  sae: {{kind: topk, k: 2, n_latents: 16, batch_size: 32, n_steps: 2, dataset: digits, backbone: tuned}}
evaluations:
  statistics: {{kind: statistics, sae: sae}}
  masking: {{kind: masking, statistics: statistics, ks: [1], n_random: 1}}
"""


@pytest.fixture
def tuned(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    state = load_file(tiny_checkpoint)
    path = tmp_path / "tuned weights.safetensors"
    # Only the image tower was tuned.
    save_file({name: tensor + 0.1 for name, tensor in state.items() if name.startswith("visual.")}, path)
    return path


def experiment(tiny_checkpoint: Path, tuned: Path, alpha: float = 0.25) -> Experiment:
    return parse(EXPERIMENT.format(base=str(tiny_checkpoint), tuned=str(tuned), alpha=alpha), "wise")


def test_weights_lie_between(tiny_checkpoint: Path, tuned: Path) -> None:
    nodes = {node.address: node for node in experiment(tiny_checkpoint, tuned).nodes()}
    base, between, twice = (
        nodes[f"weights/{name}"].config.build({}).state()  # type: ignore[attr-defined]
        for name in ("clip", "tuned", "twice")
    )
    changed = {name for name in base if not torch.equal(base[name], between[name])}
    assert changed == {name for name in base if name.startswith("visual.")}
    name = "visual.proj"
    torch.testing.assert_close(between[name], base[name] + 0.025)
    torch.testing.assert_close(twice[name], 0.5 * between[name] + 0.5 * (base[name] + 0.1))


def test_the_hook_is_its_own_however_deep(tiny_checkpoint: Path, tuned: Path) -> None:
    text = EXPERIMENT.format(base=str(tiny_checkpoint), tuned=str(tuned), alpha=0.25)
    text = text.replace("alpha: 0.5}", "alpha: 0.5, extract: {hook_block: -1, precision: bfloat16}}")
    nodes = {node.address: node for node in parse(text, "wise").nodes()}
    blocks = {name: nodes[f"weights/{name}"].config.build({}) for name in ("tuned", "twice")}  # type: ignore[attr-defined]
    assert (blocks["tuned"].hook_block, blocks["twice"].hook_block) == (1, 2)
    assert (blocks["tuned"].dtype, blocks["twice"].dtype) == (torch.float32, torch.bfloat16)


def test_an_experiment_on_it_runs_and_depends_on_both(
    tiny_checkpoint: Path, tuned: Path, store: Store
) -> None:
    done = run(work_on(store, experiment(tiny_checkpoint, tuned)), Runtime())
    weights = done["weights/tuned"].manifest
    assert weights.inputs["base"] == done["weights/clip"].identity
    assert weights.provenance["source"] == {"checkpoint": str(tuned)}
    assert load_sae(done["train/sae"]).width == 32
    planned = work_on(store, experiment(tiny_checkpoint, tuned, alpha=0.5)).planned
    assert planned["weights/clip"].state == "cached"
    assert planned["weights/tuned"].why == "alpha: 0.25 -> 0.5"
    assert planned["extract/digits-tuned"].state == "run"


def test_faults_are_sentences(tiny_checkpoint: Path, tuned: Path, tmp_path: Path, store: Store) -> None:
    text = EXPERIMENT.format(base=str(tiny_checkpoint), tuned=str(tuned), alpha=0.5)
    with pytest.raises(UserError, match=r"backbones.tuned.backbone names `clop`, .*did you mean `clip`"):
        parse(text.replace("wise_ft, backbone: clip", "wise_ft, backbone: clop"), "wise")
    with pytest.raises(UserError, match=r"backbones\.tuned: is made from itself"):
        parse(text.replace("wise_ft, backbone: clip", "wise_ft, backbone: twice"), "wise").nodes()
    for state, message in (
        ({"visual.proj": torch.zeros(5, 5)}, r"`visual.proj` is \(5, 5\), but \(32, \d+\) in `clip`"),
        ({"nonsense": torch.zeros(1)}, "has a tensor `nonsense`, which `clip` has not"),
    ):
        save_file(state, tuned)
        with pytest.raises(UserError, match=message):
            run(work_on(store, experiment(tiny_checkpoint, tuned)), Runtime())
    hostile = tmp_path / "hostile.pt"
    for tensor, message in (
        (torch.zeros(1).expand(10**6, 10**6), "`visual.proj` claims the shape"),
        (7, "`visual.proj` is of type int, not a tensor"),
    ):
        torch.save({"visual.proj": tensor}, hostile)
        with pytest.raises(UserError, match=message):
            run(work_on(store, experiment(tiny_checkpoint, hostile)), Runtime())
    tuned.write_bytes(b"garbage")
    with pytest.raises(UserError, match="cannot be read as a state dict"):
        run(work_on(store, experiment(tiny_checkpoint, tuned)), Runtime())
    gone = work_on(store, experiment(tiny_checkpoint, tmp_path / "gone.pt")).planned
    assert gone["weights/tuned"].state == "blocked" and "no such file" in gone["weights/tuned"].why
