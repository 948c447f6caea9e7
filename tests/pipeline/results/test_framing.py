"""The framing of a recorded backbone, which is found without torch, is that of its config."""

from __future__ import annotations

import subprocess
import sys

import pytest

from patchsae.pipeline.backbones.towers.framing import Framing
from patchsae.pipeline.experiment.experiment import parse
from patchsae.pipeline.results import framing
from patchsae.pipeline.results.backbones import backbone_config
from patchsae.pipeline.results.framing import framing_of
from patchsae.pipeline.results.places import Place
from patchsae.storage.records import ExperimentRecord, RecordedNode

EXPERIMENT = """
name: several
datasets: {digits: {kind: digits}}
backbones:
  clip: {kind: open_clip, model: ViT-B-16, pretrained: openai}
  squeezed: {kind: open_clip, model: ViT-B-16-SigLIP, checkpoint: none.pt}
  shapes: {kind: shapes_clip}
  tuned: {kind: wise_ft, backbone: squeezed, checkpoint: none.pt}
adapters:
  maple: {kind: maple, backbone: clip, dataset: digits}
  lora: {kind: lora, backbone: shapes, dataset: digits}
"""


@pytest.mark.parametrize("shortcut", [True, False])
def test_it_is_that_of_the_config(shortcut: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not shortcut:
        monkeypatch.setattr(framing, "_WITHOUT_TORCH", {})
    record = ExperimentRecord({}, parse(EXPERIMENT, "several").model_dump(mode="json"))
    found = {}
    for name in ("clip", "squeezed", "shapes", "tuned", "maple", "lora"):
        place = Place("several", record, RecordedNode("weights", "", {"backbone": name}))
        found[name] = framing_of(place)
        assert found[name] == backbone_config(place).framing()
    assert found["maple"] == found["clip"] == Framing((224, 224), "shortest")
    assert found["tuned"] == found["squeezed"] == Framing((224, 224), "squash")
    assert found["lora"] == found["shapes"] == Framing((64, 64), "shortest")


def test_it_needs_no_torch() -> None:
    code = """
import sys
from patchsae.pipeline.results.framing import framing_of
from patchsae.pipeline.results.places import Place
from patchsae.storage.records import ExperimentRecord, RecordedNode
backbones = {
    "plain": {"kind": "open_clip", "model": "ViT-SO400M-14-SigLIP-384", "pretrained": "webli"},
    "tuned": {"kind": "wise_ft", "backbone": "plain"},
    "small": {"kind": "shapes_clip"},
}
record = ExperimentRecord({}, {"backbones": backbones, "adapters": {"adapted": {"kind": "maple", "backbone": "tuned"}}})
found = [framing_of(Place("e", record, RecordedNode("weights", "", {"backbone": n}))) for n in ("adapted", "small")]
print(*[(one.size, one.resize_mode) for one in found], "torch" in sys.modules)
"""
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told == "((384, 384), 'squash') ((64, 64), 'shortest') False\n"
