"""What the number of torch's threads changes in a training, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from patchsae.pipeline.core.sums import total
from patchsae.pipeline.saes.quality import Reconstruction
from patchsae.pipeline.training import train
from patchsae.storage.artifacts import Artifact
from patchsae.storage.store import Store
from tests.support.sae_inputs import activations, index, run
from tests.support.training_inputs import NO_STEP, Killed, bytes_of, config_of, killed_at

N_THREADS = (1, 2, 3)
# Enough elements that torch divides a sum over all of them among threads.
SHAPES = [(1500, 96), (200_000,), (40_000, 3)]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _values(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_total_does_not_depend_on_the_number_of_threads(shape: tuple[int, ...]) -> None:
    values = _values(shape).square()
    found = set()
    for n in N_THREADS:
        torch.set_num_threads(n)
        found.add(total(values))
    assert len(found) == 1
    assert found.pop() == pytest.approx(values.double().sum().item(), rel=1e-12)


def test_a_total_of_many_rows_is_that_of_all_at_once() -> None:
    values = _values((70, 40_000)).square()
    assert total(values) == float(values.sum(dim=1, dtype=torch.float64).numpy().sum())


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) == 2])
def test_quality_does_not_depend_on_the_number_of_threads(shape: tuple[int, int]) -> None:
    x, x_hat = _values(shape), _values(shape, 1)
    found = []
    for n in N_THREADS:
        torch.set_num_threads(n)
        quality = Reconstruction(shape[1])
        quality.add(x, x_hat)
        found.append(quality.sums)
    assert all(torch.equal(sums, found[0]) for sums in found)


@pytest.fixture
def inputs(store: Store) -> dict[str, Artifact]:
    values = np.random.default_rng(0).standard_normal((120, 12, 64)).astype(np.float16)
    return {
        "activations": activations(store, values, chunk_images=20, chunks_per_shard=2),
        "images": index(store, [i % 2 for i in range(120)], ["train"] * 120, ["a", "b"]),
    }


@pytest.mark.parametrize("kind", ["relu_l1", "batch_topk"])
def test_retrained_after_damage_every_file_is_the_same(
    store: Store, inputs: dict[str, Artifact], kind: str
) -> None:
    torch.set_num_threads(2)
    config = config_of(kind, n_latents=128, batch_size=1024, n_steps=24)
    done = run(store, train.STAGE, config, inputs, NO_STEP)
    expected = bytes_of(done)
    for at in (None, 11):
        (done.path / "sae.safetensors").write_bytes(b"damaged")
        assert done.damaged_files()
        store.discard(done)
        if at is not None:
            with pytest.raises(Killed):
                run(store, train.STAGE, config, inputs, killed_at(at))
        done = run(store, train.STAGE, config, inputs, NO_STEP)
        assert bytes_of(done) == expected
