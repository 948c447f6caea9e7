from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from patchsae.pipeline.backbones.models.open_clip import OpenClipConfig
from patchsae.pipeline.experiment.experiment import PRESETS, Experiment, load, parse
from patchsae.storage.errors import UserError

DEMO = (PRESETS / "demo.yaml").read_text()


def changed(**sections: object) -> str:
    return yaml.safe_dump({**yaml.safe_load(DEMO), **sections})


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_is_whole(preset: str) -> None:
    nodes = load(preset).nodes()
    seen: set[str] = set()
    for node in nodes:
        assert set(node.inputs.values()) <= seen
        seen.add(node.address)
    stages = {node.stage.name for node in nodes}
    assert {"index", "weights", "extract", "classifier", "train"} < stages
    others = {
        "demo-sweep": {"reconstruction", "frontier"},
        "paper-table1": {"statistics", "remapping", "adaptation"},
        "paper-table2": {"reconstruction"},
    }
    assert stages >= others.get(preset, {"statistics", "masking"})


def test_the_paper_is_the_imagenet_preset() -> None:
    sae = load("imagenet-vit-b16").saes["relu"]
    assert (sae.expansion, sae.l1_coefficient, sae.lr, sae.dead_feature_window) == (64, 8e-5, 4e-4, 64)  # type: ignore[attr-defined]
    assert sae.batch_size * sae.n_steps == 2_621_440  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML at line"),
        ("- a", "an experiment is a mapping"),
        (changed(sae={}), r"`sae` is no field of it; did you mean `saes`"),
        (changed(datasets={"shapes": {"kind": "shape", "seed": 1}}), r"`datasets.shapes.kind` is `shape`.*did you mean `shapes`"),
        (changed(datasets={"shapes": {"seed": 1}}), r"`datasets.shapes.kind` is missing"),
        (changed(datasets={"shapes": {"kind": "shapes", "sed": 1, "splits": {"train": 5}}}), r"`datasets.shapes`: `sed` is no field of it; did you mean `seed`"),
        (changed(datasets={"shapes": {"kind": "shapes", "splits": {"train": 5}}}), r"`datasets.shapes.seed` is missing"),
        (changed(backbones={"shapesclip": {"kind": "shapes_clip", "extract": {"dtype": "float64"}}}), r"`backbones.shapesclip.extract.dtype` is 'float64'"),
        (changed(saes={"relu": {"kind": "relu_l1", "dataset": "shapes", "backbone": "shapeclip"}}), r"saes.relu.backbone names `shapeclip`, which is not in backbones; did you mean `shapesclip`"),
        (changed(evaluations={"it": {"kind": "reconstruction", "sae": "relu", "split": "test", "prompts": {"templates": ["a {name}"]}}}), r"`evaluations.it.prompts.templates`: `a {name}` must have `{}` in place"),
        (changed(evaluations={"it": {"kind": "reconstruction", "sae": "relu", "split": "test", "prompts": {"templates": ["a {}", "a {"]}}}), r"`a {` must have `{}` in place"),
        (changed(saes={"Re lu": {"kind": "relu_l1", "dataset": "shapes", "backbone": "shapesclip"}}), r"the name `Re lu`"),
        (changed(saes={"relu": {"kind": "relu_l1", "dataset": "shapes", "backbone": "shapesclip", "lr": float("nan")}}), r"`saes.relu.lr`"),
    ],
)  # fmt: skip
def test_a_typo_is_one_sentence_with_the_nearest_name(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse(text, "mine.yaml")
    assert str(error.value).startswith("mine.yaml: ")
    assert "\n" not in str(error.value)


def test_an_unknown_experiment_names_the_presets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dmo: neither a preset nor a YAML file; did you mean `demo`"):
        load("dmo")
    path = tmp_path / "my experiment.yaml"
    path.write_text(DEMO)
    assert load(str(path)) == load("demo")


def value(experiment: Experiment, section: str, name: str, field: str) -> object:
    return getattr(getattr(experiment, section)[name], field)


def test_overrides_by_stage_by_instance_and_by_path() -> None:
    two = yaml.safe_load(DEMO)
    two["saes"]["second"] = dict(two["saes"]["relu"])
    text = yaml.safe_dump(two)
    every = parse(text, "", ["train.l1_coefficient=1e-4"])
    assert [sae.l1_coefficient for sae in every.saes.values()] == [1e-4, 1e-4]  # type: ignore[attr-defined]
    one = parse(text, "", ["train/second.seed=7", "datasets.shapes.splits.train=50", "extract.hook_block=-3"])
    assert (value(one, "saes", "relu", "seed"), value(one, "saes", "second", "seed")) == (0, 7)
    assert one.datasets["shapes"].splits["train"] == 50  # type: ignore[attr-defined]
    assert one.backbones["shapesclip"].extract.hook_block == -3
    assert parse(text, "", ["statistics.tau=0.5"]).evaluations["statistics"].tau == 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.l1_coefficient", "write FIELD=VALUE"),
        ("tran.lr=1", "`tran` is no stage and no section; did you mean `train`"),
        ("train/rel.lr=1", "no such train"),
        ("train.l1_coeficient=1", "did you mean `l1_coefficient`"),
        ("train.lr.x=1", "`lr` has no fields"),
    ],
)
def test_a_wrong_override_is_one_sentence(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(DEMO, "demo", [override])


def test_names_and_locations_are_not_hashed() -> None:
    renamed = DEMO
    for name in ("shapesclip", "statistics", "masking", "relu", "shapes"):
        renamed = renamed.replace(f"  {name}:\n", f"  other-{name}:\n")
        for field in ("dataset", "backbone", "sae", "statistics"):
            renamed = renamed.replace(f"    {field}: {name}\n", f"    {field}: other-{name}\n")
    before, after = parse(DEMO, "").nodes(), parse(renamed, "").nodes()
    assert [node.name for node in after] != [node.name for node in before]
    keys = [[n.config.key_config() for n in nodes] for nodes in (before, after)]
    assert keys[0] == keys[1]
    assert OpenClipConfig(model="ViT-B-16", checkpoint="/a").key_config() == (
        OpenClipConfig(model="ViT-B-16", checkpoint="/b").key_config()
    )
