from __future__ import annotations

from typing import Any

import pytest
import yaml

from patchsae.pipeline.experiment.experiment import PRESETS, Experiment, parse
from patchsae.pipeline.experiment.sweeps import expand
from patchsae.storage.errors import UserError

BASE = {"kind": "topk", "dataset": "shapes", "backbone": "shapesclip", "n_steps": 1000}
RELU = {"kind": "relu_l1", "l1_coefficient": "1e-3"}


def swept(sweep: Any, overrides: tuple[str, ...] = (), **saes: Any) -> Experiment:
    demo = yaml.safe_load((PRESETS / "demo.yaml").read_text())
    raw = {**demo, "saes": saes, "sweeps": {"frontier": sweep}, "evaluations": {}}
    return parse(yaml.safe_dump(raw), "test", overrides)


def test_a_grid_becomes_saes_named_after_what_varies() -> None:
    grid = {"n_latents": [2048, 4096], "k": [16, 32]}
    experiment = swept({"base": BASE, "grid": grid, "also": [RELU]})
    names = [f"frontier-k{k}-n_latents{n}" for k in (16, 32) for n in (2048, 4096)]
    assert experiment.sweeps["frontier"] == (*names, "frontier-relu_l1-l1_coefficient1e-3")
    assert swept({"base": BASE, "grid": dict(reversed(grid.items())), "also": [RELU]}) == experiment
    member: Any = experiment.saes["frontier-k16-n_latents4096"]
    assert (member.kind, member.k, member.n_latents, member.n_steps) == ("topk", 16, 4096, 1000)


def test_overrides_reach_all_members_or_one() -> None:
    sweep = {"base": BASE, "grid": {"k": [16, 32]}}
    saes: Any = swept(sweep, ("train.lr=0.002", "train/frontier-k16.lr=0.001")).saes
    assert (saes["frontier-k16"].lr, saes["frontier-k32"].lr) == (0.001, 0.002)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"base": BASE, "grid": {"kk": [1]}}, "did you mean `k`"),
        ({"base": BASE, "grid": {"k": []}}, "write a list"),
        ({"base": BASE, "grid": {"k": 16}}, "write a list"),
        ({"base": BASE, "gird": {"k": [16]}}, "did you mean `grid`"),
        ({"base": BASE}, "has no members"),
        ({"base": BASE, "grid": {"k": [16, 16]}}, "twice"),
        ([1], "is no mapping"),
    ],
)
def test_a_wrong_sweep_is_one_sentence(sweep: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        swept(sweep)
    assert "\n" not in str(caught.value)


def test_duplicates_are_refused_naming_both() -> None:
    with pytest.raises(UserError, match="`frontier-k16` and `plain` are the same"):
        swept({"base": BASE, "grid": {"k": [16, 32]}}, plain={**BASE, "k": 16})


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (
            {"base": BASE, "grid": {name: list(range(100)) for name in ("k", "seed", "lr", "n_latents")}},
            r"has 100,000,000 members, with which the experiment has more than 100,000 values",
        ),
        ({"base": {**BASE, "lr": [0] * 50_000}, "grid": {"k": [1, 2]}}, "has 2 members, with which"),
        ({"base": BASE, "grid": {1: [2], "k": [3]}}, "varies 1, which is no field"),
        ({"base": BASE, "also": [{None: 2}]}, "varies None, which is no field"),
    ],
    ids=["many", "large", "number", "nothing"],
)
def test_a_sweep_is_counted_before_it_is_made(sweep: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        swept(sweep)
    assert "\n" not in str(caught.value)


def test_several_sweeps_are_counted_together() -> None:
    raw = {"sweeps": {f"s{n}": {"base": BASE, "grid": {"seed": list(range(1000))}} for n in range(20)}}
    with pytest.raises(UserError, match=r"`sweeps\.s\d+` has 1,000 members, with which"):
        expand(raw, {}, "theirs.yaml")
