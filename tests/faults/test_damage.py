"""Some of the damage of the campaign; `python -m tests.faults damage` does all of it."""

from __future__ import annotations

import pytest

from patchsae.storage.store import Store
from tests.faults.crashes import crashes
from tests.faults.damage import WAYS, after_commit, before_commit, kinds
from tests.faults.world import World


def test_there_is_a_file_of_every_kind(world: World) -> None:
    stages = {path.parts[0] for path in kinds(world.store)}
    assert {"index", "weights", "extract", "classifier", "train", "statistics", "masking"} < stages
    assert "experiments" in stages
    assert len(kinds(world.store)) > 25 and len(WAYS) == 7


def test_damage_after_commit(world: World) -> None:
    tally = after_commit(world, every=19)
    assert tally.tries > 9 and tally.faults == []


@pytest.mark.slow
def test_damage_before_commit(world: World) -> None:
    partial: list[Store] = []
    tally = crashes(world, "run", every=29, keep=partial)
    assert tally.tries > 9 and tally.faults == []
    tally = before_commit(world, partial, every=17)
    assert tally.tries > 9 and tally.faults == []
