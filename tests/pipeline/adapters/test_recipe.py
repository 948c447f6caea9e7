"""The recipe against Dassl's schedule worked out by hand, and the views against their distribution."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from patchsae.pipeline.adapters import views
from patchsae.pipeline.adapters.adapter import AdapterConfig
from patchsae.pipeline.adapters.recipe import Recipe, optimiser_state, restore_optimiser
from patchsae.pipeline.adapters.views import random_view


class SomeConfig(AdapterConfig):
    kind: Literal["some"] = "some"


def recipe(n_images: int = 10, **fields: Any) -> Recipe:
    return Recipe(SomeConfig(backbone="clip", dataset="pets", **fields), n_images)


def test_maples_rates_are_those_of_dassl() -> None:
    # Epoch 1 is constant; the cosine of the others is stepped from its start, over all five epochs.
    found = recipe(8, lr=0.0035, epochs=5, batch_size=4)
    assert found.steps_per_epoch == 2 and found.n_steps == 10
    expected = [1e-5, *(0.0035 * (1 + np.cos(np.pi * e / 5)) / 2 for e in range(4))]
    assert [found.learning_rate(step) for step in range(0, 10, 2)] == pytest.approx(expected)
    assert [found.learning_rate(step) for step in range(1, 10, 2)] == pytest.approx(expected)


def test_rates_may_fall_from_step_to_step_or_stay() -> None:
    by_step = recipe(10, steps=4, schedule="step", warmup_epochs=0, lr=1.0)
    assert [by_step.learning_rate(s) for s in range(4)] == pytest.approx(
        [1, 0.853553, 0.5, 0.146447], abs=1e-6
    )
    constant = recipe(10, steps=4, schedule="constant", warmup_epochs=0, lr=1.0)
    assert {constant.learning_rate(s) for s in range(4)} == {1.0}


def test_an_epoch_shows_images_once_and_epochs_differ() -> None:
    found = recipe(11, batch_size=4)
    assert found.steps_per_epoch == 2
    epoch = np.concatenate([found.images(step) for step in range(2)])
    assert len(set(epoch.tolist())) == 8
    assert sorted(found.order(0)) == list(range(11))
    assert found.order(0).tolist() != found.order(1).tolist()
    assert found.order(1).tolist() == recipe(11, batch_size=4).order(1).tolist()
    assert found.order(0).tolist() != recipe(11, seed=2).order(0).tolist()


def test_few_images_make_one_small_batch() -> None:
    found = recipe(3, batch_size=4, epochs=2)
    assert found.steps_per_epoch == 1 and found.n_steps == 2
    assert sorted(found.images(1)) == [0, 1, 2]


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_an_optimiser_goes_on_where_it_was(optimiser: str) -> None:
    def step(parameters: dict[str, torch.Tensor], with_: torch.optim.Optimizer, n: int) -> None:
        for i in range(n):
            for p in parameters.values():
                p.grad = torch.full_like(p, 0.1 * (i + 1))
            with_.step()

    def fresh() -> dict[str, torch.Tensor]:
        return {"b": torch.ones(3, requires_grad=True), "a": torch.zeros(2, 2, requires_grad=True)}

    chosen, one, other = recipe(optimiser=optimiser, weight_decay=0.1), fresh(), fresh()
    through = chosen.optimiser(one)
    step(one, through, 2)
    copied = {name: p.detach().clone() for name, p in one.items()}
    state = optimiser_state(through)
    step(one, through, 2)
    for name, p in other.items():
        p.data.copy_(copied[name])
    again = chosen.optimiser(other)
    restore_optimiser(again, state)
    step(other, again, 2)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_view_depends_on_its_seed_alone() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    first = np.asarray(random_view(image, (32, 32), (1, 5, 0)))
    assert first.shape == (32, 32, 3)
    assert (first == np.asarray(random_view(image, (32, 32), (1, 5, 0)))).all()
    assert not (first == np.asarray(random_view(image, (32, 32), (1, 5, 1)))).all()


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (50, 50), (400, 20), (1, 1)])
def test_crops_are_distributed_as_those_of_torchvision(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size)
    draws = np.random.default_rng(0).random((2000, 10, 4))
    ours = np.array([views._box(*size, one) for one in draws])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    theirs = np.array([(left, top, left + w, top + h) for top, left, h, w in params])
    for area in (ours, theirs):
        assert (area[:, :2] >= 0).all() and (area[:, 2:] <= size).all()
    tolerance = 0.03 * np.array([*size, *size])
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) <= tolerance).all()
    assert (np.abs(ours.std(axis=0) - theirs.std(axis=0)) <= tolerance).all()


def test_half_of_the_views_are_mirrored() -> None:
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8), (64, 1))).convert("RGB")
    found = [np.asarray(random_view(ramp, (16, 16), (0, 0, n))).astype(int)[8, :, 0] for n in range(300)]
    assert 0.42 < np.mean([row[0] > row[-1] for row in found]) < 0.58
