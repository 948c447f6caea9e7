"""Some of the races of the campaign; `python -m tests.faults races` does all of them."""

from __future__ import annotations

import pytest

from tests.faults.races import CHANGERS, pairs, races
from tests.faults.world import World


def test_every_stage_that_reads_is_raced(world: World) -> None:
    readers = {reader.split("/")[0] for reader, _ in pairs(world)}
    assert readers == {
        *("extract", "classifier", "train", "import", "statistics", "masking", "reconstruction", "frontier")
    }
    assert len(pairs(world)) > 15 and len(CHANGERS) == 4


def test_some_races(world: World) -> None:
    tally = races(world, every=13)
    assert tally.tries > 4 and tally.faults == []


@pytest.mark.slow
def test_races(world: World) -> None:
    tally = races(world, every=5)
    assert tally.tries > 15 and tally.faults == []
