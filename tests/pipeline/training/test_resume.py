"""Every objective, stopped anywhere and continued, ends in the same bytes."""

from __future__ import annotations

import pytest

from patchsae.pipeline.core import registry
from patchsae.pipeline.training import objectives, train
from patchsae.pipeline.training.objective import TrainedSaeConfig
from patchsae.storage.store import Store
from tests.support.sae_inputs import run
from tests.support.training_inputs import (
    EVERY_STEP,
    KINDS,
    NO_STEP,
    Killed,
    bytes_of,
    config_of,
    inputs_in,
    killed_at,
)


def test_every_objective_is_here() -> None:
    assert set(registry.variants(objectives, TrainedSaeConfig)) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_continued(store: Store, kind: str) -> None:
    inputs, config = inputs_in(store), config_of(kind)
    whole = run(store, train.STAGE, config, inputs, NO_STEP)
    expected, summary = bytes_of(whole), whole.manifest.summary
    store.discard(whole)
    for at in (1, 17, 44):
        with pytest.raises(Killed):
            run(store, train.STAGE, config, inputs, killed_at(at))
    done = run(store, train.STAGE, config, inputs, EVERY_STEP)
    assert bytes_of(done) == expected
    assert done.manifest.summary == summary
