from __future__ import annotations

from pathlib import Path

import numpy as np

from patchsae.storage.checkpoints import Checkpoints

ARRAYS = {"W": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array([7], np.int64)}


def test_the_newest_checkpoint_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest() is None
    for step in (5, 10, 15):
        checkpoints.save(step, {**ARRAYS, "n": np.array([step])}, {"seen": step * 1.5})
    latest = checkpoints.latest()
    assert latest is not None
    assert (latest.step, latest.values, latest.arrays["n"].tolist()) == (15, {"seen": 22.5}, [15])
    np.testing.assert_array_equal(latest.arrays["W"], ARRAYS["W"])
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (5, 10):
        checkpoints.save(step, ARRAYS, {})
    newest = tmp_path / "checkpoints" / "step-000000010.safetensors"
    data = bytearray(newest.read_bytes())
    for damaged in (data[:-9], data[:-1] + bytes([data[-1] ^ 1]), b""):
        newest.write_bytes(damaged)
        latest = checkpoints.latest()
        assert latest is not None
        assert latest.step == 5
