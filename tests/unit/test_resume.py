"""Every objective, stopped anywhere and continued, ends in the same bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sae_inputs import run
from training_inputs import KINDS, Killed, KillingReporter, bytes_of, config_of, inputs_in

from pipeline import registry, saes, train
from pipeline.saes.objective import TrainedSaeConfig
from pipeline.stage import Runtime
from storage.artifacts import Store


def test_every_objective_is_here() -> None:
    assert set(registry.variants(saes, TrainedSaeConfig)) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_continued(store: Store, kind: str) -> None:
    inputs, config = inputs_in(store), config_of(kind)
    whole = run(store, train.STAGE, config, inputs, Runtime(checkpoint_seconds=1e9))
    expected, summary = bytes_of(whole), whole.manifest.summary
    store.discard(whole)
    every_step = Runtime(checkpoint_seconds=0)
    for at in (1, 17, 44):
        with pytest.raises(Killed):
            run(store, train.STAGE, config, inputs, replace(every_step, reporter=KillingReporter(at)))
    done = run(store, train.STAGE, config, inputs, every_step)
    assert bytes_of(done) == expected
    assert done.manifest.summary == summary
